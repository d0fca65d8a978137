"""What a mirror shows of a run: the points of its history and its results, the same during the run and afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_bench.records.schema import HistoryEntry, Protocol

# One key for every task: the primary metric, on the report split and on the selection split.
SCORE = "score"
SELECTION_SCORE = "selection_score"

# Part of the record, but no result.
_NOT_RESULTS = ("config", "history", "versions", "hardware", "git", "error")


def history_point(entry: HistoryEntry, protocol: Protocol) -> dict[str, float]:
    """One evaluation, by the names of a tracker's curves; what was not a finite number is left out."""
    scores = {f"{protocol.selection_split}/{name}": value for name, value in entry.scores.items()}
    point: dict[str, float | None] = {"epoch": entry.epoch, "train/loss": entry.train_loss, **scores}
    point[SELECTION_SCORE] = entry.scores.get(protocol.metric)
    return {name: value for name, value in point.items() if value is not None}


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's numbers by path (`memory/ledger/peak_bytes`), and its two scores by one name for every task."""
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
