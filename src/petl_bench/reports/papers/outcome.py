"""What came of a claim's test."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.reports.statistics.study_records import StudyRecords


@dataclass(frozen=True)
class Outcome:
    """`holds` is None where runs are missing; `numbers` are in words."""

    holds: bool | None
    numbers: str


def not_run(cells: list[tuple[str, str]], ours: StudyRecords, words: str = "") -> Outcome:
    """No verdict: how many runs of these (method, task) are missing; where none is, what else is, in `words`."""
    missing = {cell: ours.num_missing(*cell) for cell in cells}
    total = sum(missing.values())
    first = next((f"{method} on {task}" for (method, task), number in missing.items() if number), "")
    if not total:
        return Outcome(None, words or "not measured in the runs that are there")
    return Outcome(None, f"{total} {'run is' if total == 1 else 'runs are'} missing, the first of them {first}")
