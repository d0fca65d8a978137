"""Claims on the layers that a method chooses."""

from __future__ import annotations

from typing import Any

from petl_bench.reports.papers.outcome import Outcome, not_run
from petl_bench.reports.statistics.study_records import StudyRecords


def same_choice(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """The layer that layers=variability chose, against that on the first task, seed by seed."""
    method = test["method"]
    cells = [(method, task) for task in test["tasks"]]
    if any(ours.num_missing(*cell) for cell in cells):
        return not_run(cells, ours)
    chosen = {
        task: {seed: record.layers.top for seed, record in ours.by_seed(method, task).items() if record.layers}
        for task in test["tasks"]
    }
    if not all(chosen.values()):
        return not_run(cells, ours)
    first = chosen[test["tasks"][0]]
    if not all(first.keys() & layers.keys() for layers in chosen.values()):
        return Outcome(None, f"no seed of {method} finished on all of {', '.join(test['tasks'])}")
    moves = [abs(layer - first[seed]) for layers in chosen.values() for seed, layer in layers.items() if seed in first]
    words = ", ".join(f"{task} {'/'.join(map(str, layers.values()))}" for task, layers in chosen.items())
    within = test.get("within", 0)
    return Outcome(max(moves) <= within, f"layer chosen by {method}, a seed each: {words}; claimed: {within:g} apart")
