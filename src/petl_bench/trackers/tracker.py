"""What a tracker is: a mirror of a run's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from petl_bench.trackers.config import TrackerConfig


@dataclass(frozen=True)
class RunIdentity:
    """How a run is called.

    Attributes:
        key: The run key; the tracker's id of the run.
        name: Readable.
        group: Method x task x backbone: what differs in seed alone.
        job_type: The method.
        folder: The run's folder.
        config: The whole config.
    """

    key: str
    name: str
    group: str
    job_type: str
    folder: Path
    config: dict[str, Any]


class Tracker(Protocol):
    """Mirrors a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history at this number of updates."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mirrors the record and closes the run, whatever became of it."""


class NoTracker:
    """Mirrors nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""


def open_tracker(settings: TrackerConfig, run: RunIdentity) -> Tracker:
    """Opens the configured tracker.

    Raises:
        RequestError: where its package is missing.
        RunError: where its service cannot be reached.
    """
    if settings.name == "wandb":
        from petl_bench.trackers.wandb import WandbTracker

        return WandbTracker(settings, run)
    if settings.name == "tensorboard":
        from petl_bench.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(run)
    return NoTracker()


def flat_numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, by path: `memory/device/alloc_retries`."""
    numbers: dict[str, float] = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[path] = value
    return numbers
