"""The records of a study by its own names of methods and tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts, PlannedRun, StudyFile
from petl_bench.reports.statistics.groups import is_comparable


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
            if record.run_key not in self._records or is_comparable(record):
                self._records[record.run_key] = record
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        for run in sorted(study.runs, key=lambda run: run.seed):
            if run.chosen is not False:
                self._planned.setdefault((run.method, run.task), []).append(run)
        self._costs = {(cost.method, cost.task): cost for cost in study.costs}

    def seeds(self, method: str, task: str) -> list[int]:
        """The seeds that are wanted, in order."""
        return sorted({run.seed for run in self._runs(method, task)})

    def rate_open(self, method: str, task: str) -> bool:
        """Whether several rates a seed are there: which of them is the method's has not been decided."""
        return len(self._runs(method, task)) > len(self.seeds(method, task))

    def there(self, method: str, task: str) -> list[Record]:
        """All records of this cell, whatever became of the runs, in the order of their seeds."""
        return [self._records[run.key] for run in self._runs(method, task) if run.key in self._records]

    def by_seed(self, method: str, task: str) -> dict[int, Record]:
        """The finished records of this cell, in the order of their seeds."""
        if self.rate_open(method, task):
            return {}
        found = {run.seed: self._records.get(run.key) for run in self._runs(method, task)}
        return {seed: record for seed, record in found.items() if record is not None and is_comparable(record)}

    def num_missing(self, method: str, task: str) -> int:
        """Planned runs that have not ended; those that failed have."""
        runs = self._runs(method, task)
        if self.rate_open(method, task):
            return len(runs)
        return sum(not self._ended(run) for run in runs) if runs else 1

    def num_failed(self, method: str, task: str) -> int:
        """Planned runs that ended otherwise than finished."""
        runs = self._runs(method, task)
        return sum(self._ended(run) and not is_comparable(self._records[run.key]) for run in runs)

    def _runs(self, method: str, task: str) -> list[PlannedRun]:
        return self._planned.get((method, task), [])

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
        return self._costs.get((method, task))


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
