"""What a tracker is: a mirror of a run's record; never the source of a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING

from petl_bench.records.run_key import backbone_name, method_label, run_name
from petl_bench.records.schema import HistoryEntry
from petl_bench.records.schema import Protocol as RunProtocol

TRACKERS = ("none", "wandb", "tensorboard")


@dataclass
class TrackerConfig:
    """Where a run is mirrored; never the source of a number."""

    name: str = MISSING
    project: str = "petl_bench"


# One key for every task: the primary metric, on the report split and on the selection split.
SCORE = "score"
SELECTION_SCORE = "selection_score"

# Part of the record, but no result.
_NOT_RESULTS = ("config", "history", "versions", "hardware", "git", "error")


def history_point(entry: HistoryEntry, protocol: RunProtocol) -> dict[str, float]:
    """One evaluation, by the names of a tracker's curves; what was not a finite number is left out."""
    scores = {f"{protocol.selection_split}/{name}": value for name, value in entry.scores.items()}
    point: dict[str, float | None] = {"epoch": entry.epoch, "train/loss": entry.train_loss, **scores}
    point[SELECTION_SCORE] = entry.scores.get(protocol.metric)
    return {name: value for name, value in point.items() if value is not None}


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's numbers by path (`memory/estimate/peak_bytes`), and its two scores by one name for every task."""
    return headline(record) | flat_numbers({name: item for name, item in record.items() if name not in _NOT_RESULTS})


def headline(record: Mapping[str, Any]) -> dict[str, float]:
    """The primary metric of the weights that the protocol selects; empty for a run that did not come so far."""
    protocol, scores = record.get("protocol"), record.get("scores")
    if not protocol or not scores:
        return {}
    metric, selection = protocol["metric"], protocol["selection"]
    selected = [entry["scores"].get(metric) for entry in record.get("history", [])]
    known = [value for value in selected if value is not None]
    found = {SCORE: scores["best" if selection == "best" else "last"].get(metric)}
    if known:
        best = max(known) if protocol["higher_is_better"] else min(known)
        found[SELECTION_SCORE] = best if selection == "best" else known[-1]
    return {name: value for name, value in found.items() if value is not None}


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


def named(config: dict[str, Any], key: str, folder: Path) -> RunIdentity:
    """Names a run whose key is known, such as that of a record; reads no file."""
    method = method_label(config["method"])
    return RunIdentity(
        key=key,
        name=run_name(config, key),
        group=f"{method}-{config['task']['name']}-{backbone_name(config['backbone'])}",
        job_type=method,
        folder=folder,
        config=config,
    )
