"""Studies whose methods are equally good: every verdict that a report gives on one of them is a false alarm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petl_bench.records.predictions import Predictions
from petl_bench.records.schema import Record
from petl_bench.reports.differences import find_differences, no_predictions
from petl_bench.reports.groups import Group
from petl_bench.reports.ranking import Analysis, analyse
from petl_bench.reports.results_table import Cell, ResultsTable
from reports.generated import record

# Log-odds of a right answer: the mean, and how far rows differ.
EASE, ROWS_SD = 1.5, 1.5


@dataclass(frozen=True)
class NullModel:
    """How a study of equal methods is drawn.

    Attributes:
        methods, seeds, rows: Their numbers; rows of each data set.
        data_sets: Their number.
        subsets: The number of tasks that share the rows of one data set, e.g. numbers of training rows.
        seeds_sd: How far the log-odds of the seeds of one method differ.
        method_rows_sd: How far those of a method differ on one row; on average over rows, methods are equal.
        method_tasks_sd: How far those of a method differ on one data set; on average over data sets, methods are equal.
        with_predictions: Whether runs have kept predictions.
        ahead: Log-odds that the first method is ahead, to count how often that is found.
    """

    methods: int = 2
    seeds: int = 5
    rows: int = 300
    data_sets: int = 1
    subsets: int = 1
    seeds_sd: float = 0.1
    method_rows_sd: float = 1.0
    method_tasks_sd: float = 0.0
    with_predictions: bool = True
    ahead: float = 0.0


class NullStudy:
    """Draws studies of one model again and again, and analyses each as a report does."""

    def __init__(self, model: NullModel, seed: int = 0) -> None:
        self.model = model
        self._rng = np.random.default_rng(seed)
        names = [f"m{number}" for number in range(model.methods)]
        tasks = [f"d{number}_{subset}" for number in range(model.data_sets) for subset in range(model.subsets)]
        cells = {}
        for name in names:
            for task in tasks:
                records = [record(name, task, seed, 0.5) for seed in range(model.seeds)]
                for one in records:
                    # Without predictions, the rows' origin says which tasks share them.
                    assert one.protocol
                    one.protocol.task = task.partition("_")[0]
                cells[name, task] = Cell(Group(task, "a backbone", name, records))
        self._results = ResultsTable("null", names, tasks, cells)
        self._kept: dict[str, Predictions] = {}

    def draw(self, reference: str | None = None) -> Analysis:
        """Draws a study and analyses it."""
        model = self.model
        for number in range(model.data_sets):
            ids = np.array([f"{number:04x}{row:012x}" for row in range(model.rows)])
            ease = EASE + ROWS_SD * self._rng.normal(size=model.rows)
            for position, name in enumerate(self._results.methods):
                of_method = model.method_tasks_sd * self._rng.normal() + model.ahead * (position == 0)
                of_rows = ease + of_method + model.method_rows_sd * self._rng.normal(size=model.rows)
                for subset in range(model.subsets):
                    for one in self._results.cells[name, f"d{number}_{subset}"].group.records:
                        self._fill(one, ids, of_rows + model.seeds_sd * self._rng.normal())
        read = (lambda one: self._kept[one.run_key]) if model.with_predictions else no_predictions
        (analysis,) = analyse([find_differences(self._results, read)], "mean", reference)
        return analysis

    def _fill(self, one: Record, ids: np.ndarray, log_odds: np.ndarray) -> None:
        right = self._rng.random(len(ids)) < 1 / (1 + np.exp(-log_odds))
        assert one.scores
        one.scores.best["accuracy"] = float(right.mean())
        self._kept[one.run_key] = Predictions(ids, np.zeros(len(ids), np.int64), np.stack([right, ~right], axis=1))


def verdicts(analysis: Analysis, *, over_data_sets: bool) -> list[str]:
    """The verdicts on the first task, or over data sets."""
    task = None if over_data_sets else analysis.results.tasks[0]
    return [one.verdict for one in analysis.comparisons if one.task == task]


def share_with_verdict(
    model: NullModel, reports: int, *, over_data_sets: bool = False, reference: str | None = None
) -> float:
    """The share of reports that call any method better or worse, on the first task or over data sets.

    Args:
        model: What studies are drawn from.
        reports: The number of studies.
        over_data_sets: Which verdicts are counted.
        reference: The method that the user compares with; None: every pair.
    """
    study = NullStudy(model)
    drawn = (study.draw(reference) for _ in range(reports))
    return float(
        np.mean([bool({"better", "worse"} & set(verdicts(one, over_data_sets=over_data_sets))) for one in drawn])
    )


def share_found(model: NullModel, reports: int, *, over_data_sets: bool = False) -> float:
    """The share of reports that call the first method better than the second, where it is.

    Args:
        model: What studies are drawn from; the first method is `ahead`.
        reports: The number of studies.
        over_data_sets: Which verdicts are counted.
    """
    study = NullStudy(model)
    found = []
    for _ in range(reports):
        for one in study.draw().comparisons:
            if (one.task is None) == over_data_sets and {one.method, one.reference} == {"m0", "m1"}:
                found.append(one.verdict == ("better" if one.method == "m0" else "worse"))
                break
    return float(np.mean(found))
