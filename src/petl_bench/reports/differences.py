"""Differences between two methods: on one task, over the seeds and rows that both have; and over data sets.

docs/reports.md explains which test is used where, and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from petl_bench.records.predictions import Predictions
from petl_bench.records.schema import Record
from petl_bench.reports.groups import Group
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.significance import (
    LEAST_DATA_SETS,
    Estimate,
    Statistic,
    mcnemar,
    over_rows,
    over_seeds,
    over_seeds_and_rows,
    sign_flips,
)

# Reads the predictions of a run; returns None if it kept none.
ReadPredictions = Callable[[Record], Predictions | None]

Test = Literal["seeds and rows", "seeds", "rows", "data sets"]

Pair = tuple[str, str]

# Two data sets may share short texts by chance; above this share of the smaller one's rows, they count as one.
_SHARED_ROWS = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """The score of one method minus that of another. Higher is better: errors are negated.

    Attributes:
        mean: On one task, the mean over the seeds that both finished; otherwise the mean over data sets.
        n: The number of seeds, or of data sets.
        test: What `p` and `interval` generalise to: new training runs and new rows, new training runs on these rows,
            new rows for these two runs only, or other data sets. None if there are too few values for a test.
        p: The uncorrected p value.
        estimate: The basis of the interval and the power, and of `p` if it is from a t test; None without a test.
        rows: The number of rows, if the test uses their predictions.
        disagreements: For two single runs, the number of rows that only one of them has right.
    """

    mean: float
    n: int
    test: Test | None = None
    p: float | None = None
    estimate: Estimate | None = None
    rows: int | None = None
    disagreements: int | None = None

    def turned(self) -> Difference:
        """The second method minus the first."""
        estimate = replace(self.estimate, mean=-self.estimate.mean) if self.estimate else None
        return replace(self, mean=-self.mean, estimate=estimate)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The uncorrected 95 % interval; None without a test."""
        return self.estimate.interval() if self.estimate else None


def no_predictions(_record: Record) -> None:
    """A `ReadPredictions` for runs that kept no predictions."""


@dataclass(frozen=True)
class Differences:
    """The differences between all pairs of methods in one results table.

    Attributes:
        by_task: Differences by task and pair, for pairs that share a seed; each pair is in the table's method order.
        data_sets: The tasks grouped by data set: tasks that are scored on the same rows form one data set.
    """

    results: ResultsTable
    by_task: dict[str, dict[Pair, Difference]]
    data_sets: list[list[str]]

    def on_task(self, task: str, method: str, other: str) -> Difference | None:
        """The difference `method` minus `other` on a task; None if they share no seed."""
        return _oriented(self.by_task[task], method, other)

    @property
    def are_averaged(self) -> bool:
        """Whether there are several tasks and their scores have the same unit, so that they can be averaged."""
        return len(self.results.tasks) > 1 and self.results.all_in_percent

    @cached_property
    def by_data_set(self) -> dict[Pair, dict[int, float]]:
        """The mean difference on each data set, by pair; only data sets with a task that both methods finished."""
        by_pair: dict[Pair, dict[int, float]] = {}
        for number, tasks in enumerate(self.data_sets):
            for pair in combinations(self.results.methods, 2):
                means = [self.by_task[task][pair].mean for task in tasks if pair in self.by_task[task]]
                if means:
                    by_pair.setdefault(pair, {})[number] = fmean(means)
        return by_pair

    def over_data_sets(self, pairs: Sequence[Pair]) -> tuple[dict[Pair, Difference], dict[Pair, float]]:
        """Compares pairs over data sets.

        Args:
            pairs: The pairs (method, reference) that are tested together.

        Returns:
            The difference of each pair that shares a data set, and the p values of the pairs that share enough data
            sets for a test, corrected for all of those.
        """
        shared = {
            pair: {number: sign * value for number, value in self.by_data_set[ordered].items()}
            for pair in pairs
            for ordered, sign in ((pair, 1), (pair[::-1], -1))
            if ordered in self.by_data_set
        }
        differences = {pair: Difference(fmean(values.values()), len(values)) for pair, values in shared.items()}
        tested = [pair for pair, values in shared.items() if len(values) >= LEAST_DATA_SETS]
        if not tested:
            return differences, {}
        table = np.array(
            [[shared[pair].get(number, np.nan) for pair in tested] for number in range(len(self.data_sets))]
        )
        alone, corrected = sign_flips(table)
        for pair, p in zip(tested, alone, strict=True):
            statistic = Statistic.of(shared[pair].values())
            estimate = statistic.estimate if statistic else None
            differences[pair] = replace(differences[pair], test="data sets", p=p, estimate=estimate)
        return differences, dict(zip(tested, corrected, strict=True))


def _oriented(differences: Mapping[Pair, Difference], method: str, other: str) -> Difference | None:
    if (method, other) in differences:
        return differences[method, other]
    turned = differences.get((other, method))
    return turned.turned() if turned else None


def find_differences(results: ResultsTable, read: ReadPredictions = no_predictions) -> Differences:
    """Compares every pair of methods of a results table on every task.

    Args:
        results: The methods and tasks.
        read: Reads the predictions of a run.

    Returns:
        The differences of every pair on every task and over all data sets, with their intervals and p values.
    """
    by_task, rows_of_task = {}, {}
    for task in results.tasks:
        column = _read_column(results, task, read)
        rows_of_task[task] = column.row_ids
        pairs = combinations([method for method in results.methods if method in column.scores], 2)
        differences = {pair: _difference(column, *pair) for pair in pairs}
        by_task[task] = {pair: difference for pair, difference in differences.items() if difference is not None}
    return Differences(results, by_task, _data_sets(results, rows_of_task))


@dataclass
class _Column:
    """The scores of one task's runs by method and seed, and what each row contributes to them."""

    metric: str
    scores: dict[str, dict[int, float]]
    rows: dict[str, dict[int, NDArray[Any]]]
    row_ids: frozenset[str]


def _read_column(results: ResultsTable, task: str, read: ReadPredictions) -> _Column:
    sign = 1 if results.in_percent(task) else -1
    groups = {method: group for method in results.methods if (group := results.cells[method, task].group)}
    metric = results.metric(task) or ""
    scores = {
        method: {seed: sign * score for seed, score in by_seed.items()}
        for method, group in groups.items()
        if (by_seed := group.by_seed(metric))
    }
    rows: dict[str, dict[int, NDArray[Any]]] = {method: {} for method in groups}
    expected: tuple[NDArray[Any], NDArray[Any]] | None = None
    of_other_rows = 0
    for method, group in groups.items():
        for record in group.records:
            predictions = read(record)
            if predictions is None or record.protocol is None:
                continue
            ordered = _in_order_of_ids(predictions)
            expected = expected or (ordered.row_ids, ordered.labels)
            if not all(map(np.array_equal, expected, (ordered.row_ids, ordered.labels))):
                of_other_rows += 1
                continue
            values = pseudo_values(metric, ordered.labels, ordered.predicted)
            if values is not None:
                rows[method][record.protocol.seed] = sign * values
    if of_other_rows:
        _log.warning("%s: runs whose predictions are of other rows than the first run's: %d", task, of_other_rows)
    return _Column(metric, scores, rows, frozenset(expected[0].tolist()) if expected else frozenset())


def _in_order_of_ids(predictions: Predictions) -> Predictions:
    """Sorts rows by their ids; rows with the same texts, which have the same id, stay in the order of the split."""
    return predictions.take(np.argsort(predictions.row_ids, kind="stable"))


def _difference(column: _Column, first: str, second: str) -> Difference | None:
    seeds = sorted(column.scores[first].keys() & column.scores[second].keys())
    if not seeds:
        return None
    by_seed = [column.scores[first][seed] - column.scores[second][seed] for seed in seeds]
    mean, n = fmean(by_seed), len(seeds)
    first_rows, second_rows = column.rows[first], column.rows[second]
    if not all(seed in first_rows and seed in second_rows for seed in seeds):
        # Without stored predictions, as in older records, nothing can be inferred about other rows.
        return _tested(Difference(mean, n, "seeds"), over_seeds(by_seed))
    rows = np.stack([first_rows[seed] - second_rows[seed] for seed in seeds])
    if n > 1:
        return _tested(Difference(mean, n, "seeds and rows", rows=rows.shape[1]), over_seeds_and_rows(rows, mean))
    difference = _tested(Difference(mean, n, "rows", rows=rows.shape[1]), over_rows(rows[0], mean))
    if column.metric != "accuracy":
        return difference
    only_first, only_second = int((rows[0] > 0).sum()), int((rows[0] < 0).sum())
    return replace(difference, p=mcnemar(only_first, only_second), disagreements=only_first + only_second)


def _tested(difference: Difference, estimate: Estimate | None) -> Difference:
    if estimate is None:
        return Difference(difference.mean, difference.n)
    return replace(difference, p=estimate.p, estimate=estimate)


def _data_sets(results: ResultsTable, rows_of_task: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups tasks that are scored on the same rows, by their row ids or, if these are unknown, by their origin."""
    data_sets: list[list[str]] = []
    origins = {group.task: _origin(group) for group in reversed(results.groups())}

    def same(task: str, other: str) -> bool:
        """Whether the tasks share more than `_SHARED_ROWS` of the smaller one's rows or, if unknown, their origin."""
        rows, other_rows = rows_of_task[task], rows_of_task[other]
        if rows and other_rows:
            return len(rows & other_rows) > _SHARED_ROWS * min(len(rows), len(other_rows))
        return origins[task] == origins[other]

    for task in results.tasks:
        if task not in origins:
            continue
        joined = [data_set for data_set in data_sets if any(same(task, other) for other in data_set)]
        if not joined:
            data_sets.append([task])
            continue
        joined[0] += [other for data_set in joined[1:] for other in data_set] + [task]
        data_sets = [data_set for data_set in data_sets if data_set not in joined[1:]]
    return data_sets


def _origin(group: Group) -> tuple[Any, ...]:
    """Where a task's scored rows come from."""
    record = group.first
    assert record.protocol
    settings = record.config["task"]
    dataset = record.data.dataset.removesuffix(" (local copy)") if record.data else record.protocol.task
    return (
        dataset,
        settings.get("subset"),
        settings.get("test_file") or settings.get("validation_file") or settings.get("train_file"),
        record.protocol.report_split,
    )
