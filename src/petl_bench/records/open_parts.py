"""What is read of a record's config and hardware, which are kept as they were written, so typed nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petl_bench.records.typed import build, check

_SECTIONS = ("backbone", "method", "layers", "task", "train")


@dataclass
class _Named:
    name: str


@dataclass
class _Backbone(_Named):
    path: str | None = None


@dataclass
class _Method(_Named):
    # PEFT's, of its shelf.
    type: str = ""


@dataclass
class _Train:
    seed: int


@dataclass
class _Tracker:
    project: str | None = None


@dataclass
class _Config:
    backbone: _Backbone
    method: _Method
    layers: dict[str, Any]
    task: _Named
    train: _Train
    tracker: _Tracker | None = None


@dataclass
class _Hardware:
    device: str | None = None
    processor: str | None = None
    logical_cores: int | None = None
    num_processes: int = 1


def check_open_parts(config: Mapping[str, Any], hardware: Mapping[str, Any], *, scored: bool) -> None:
    """Holds them to what is read of them; of a run without scores, the config's sections to objects.

    Raises:
        ValueError: naming the field, where one is missing or of another type.
    """
    build(_Hardware, hardware, "hardware")
    if scored:
        build(_Config, config, "config")
        return
    for name in _SECTIONS:
        check(dict, config.get(name, {}), f"config.{name}")
