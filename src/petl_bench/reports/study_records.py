"""The records of a study by its own names of methods and tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts, PlannedRun, StudyFile


class StudyRecords:
    """Looks records up by (method, task), through the run keys that the study planned.

    Runs with rates that were tried and not taken count nowhere; where the rate of a cell is still open, none of its
    runs counts yet.
    """

    def __init__(self, study: StudyFile, records: Iterable[Record]) -> None:
        self.study = study
        self._records: dict[str, Record] = {}
        for record in records:
            # A folder may hold a failed attempt beside the run that was made again.
            if record.run_key not in self._records or _usable(record):
                self._records[record.run_key] = record
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        self._open: set[tuple[str, str]] = set()
        for run in study.runs:
            if run.chosen is not False:
                self._planned.setdefault((run.method, run.task), []).append(run)
        for cell, runs in self._planned.items():
            if len({run.seed for run in runs}) < len(runs):
                self._open.add(cell)

    def by_seed(self, method: str, task: str) -> dict[int, Record]:
        """The finished records of this cell."""
        if (method, task) in self._open:
            return {}
        found = {run.seed: self._records.get(run.key) for run in self._planned.get((method, task), [])}
        return {seed: record for seed, record in found.items() if record is not None and _usable(record)}

    def num_missing(self, method: str, task: str) -> int:
        """Planned runs that have not ended; those that failed have."""
        runs = self._planned.get((method, task), [])
        if (method, task) in self._open:
            return len(runs)
        return sum(not self._ended(run) for run in runs) if runs else 1

    def num_failed(self, method: str, task: str) -> int:
        """Planned runs that ended otherwise than finished."""
        runs = self._planned.get((method, task), [])
        return sum(self._ended(run) and not _usable(self._records[run.key]) for run in runs)

    def _ended(self, run: PlannedRun) -> bool:
        """An interrupted run goes on."""
        return run.key in self._records and self._records[run.key].status != "interrupted"

    def primary_metric(self, task: str) -> str | None:
        """The task's primary metric, by any of the study's records."""
        for method in self.study.methods:
            for record in self.by_seed(method, task).values():
                assert record.protocol
                return record.protocol.metric
        return None

    def costs(self, method: str, task: str) -> PlannedCosts | None:
        """What was planned for this cell."""
        return next((item for item in self.study.costs if (item.method, item.task) == (method, task)), None)


def _usable(record: Record) -> bool:
    return record.status == "finished" and None not in (record.protocol, record.params, record.scores)


def score_of(record: Record, metric: str) -> float | None:
    """The selected weights' score; of `a+b` the mean of both, None where one is missing."""
    scores = [record.selected_scores.get(name) for name in metric.split("+")]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(scores) else None


def is_error(metric: str) -> bool:
    """Whether lower is better, and percent make no sense."""
    return metric.endswith("_error")


def in_points(metric: str, value: float) -> float:
    """A score as papers print it: fractions and correlations times 100, errors as they are."""
    return value if is_error(metric) else 100 * value
