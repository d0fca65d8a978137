"""The report on rows: scores per class, confusions between classes, and the calibration of methods.

All of it is computed from the predictions that runs kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.records.predictions import Predictions
from petl_bench.records.schema import Record
from petl_bench.reports.classification import (
    ECE_BINS,
    Calibrations,
    ClassScores,
    calibrations,
    class_scores,
    confusion_matrix,
)
from petl_bench.reports.fields import MISSING
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.significance import Statistic

_log = logging.getLogger(__name__)

# Reads the predictions of a run on a split; returns None if it kept none.
ReadSplit = Callable[[Record, str], Predictions | None]

# A matrix with more classes is too wide for a table; JSON contains it.
_WIDEST_MATRIX = 12


@dataclass(frozen=True)
class MethodRows:
    """Results computed from the predictions of a method's runs on one task.

    Attributes:
        runs: The number of runs with predictions.
        calibration: Statistics of each number over these runs; None if no temperature could be fitted.
        classes: The scores of each class, over the rows of all runs together.
        confusions: Counts by true and predicted class, over the rows of all runs together.
        reason: Why there is no temperature scaling; None if there is.
    """

    method: str
    runs: int
    calibration: dict[str, Statistic | None]
    classes: list[ClassScores]
    confusions: NDArray[Any]
    reason: str | None


@dataclass(frozen=True)
class TaskRows:
    """The methods on one task of a results table."""

    title: str
    task: str
    labels: list[str]
    methods: list[MethodRows]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        methods = [
            {
                "method": method_rows.method,
                "runs": method_rows.runs,
                "calibration": {
                    name: None if value is None else {"mean": value.mean, "sd": value.sd}
                    for name, value in method_rows.calibration.items()
                },
                "no_scaling_because": method_rows.reason,
                "classes": [asdict(scores) for scores in method_rows.classes],
                "confusion_matrix": method_rows.confusions.tolist(),
            }
            for method_rows in self.methods
        ]
        return {"table": self.title, "task": self.task, "labels": self.labels, "methods": methods}

    def tables(self) -> list[ReportTable]:
        """Calibration, scores of classes, and confusions where there are not too many classes."""
        tables = [self._calibration(), self._classes()]
        return [*tables, self._confusions()] if len(self.labels) <= _WIDEST_MATRIX else tables

    def _calibration(self) -> ReportTable:
        names = list(self.methods[0].calibration)
        rows = [
            [method_rows.method, str(method_rows.runs), *map(_mean, method_rows.calibration.values())]
            for method_rows in self.methods
        ]
        reasons: dict[str, list[str]] = {}
        for method_rows in self.methods:
            if method_rows.reason is not None:
                reasons.setdefault(method_rows.reason, []).append(method_rows.method)
        notes = [
            "mean ± sd over the runs; lower is better, except for the temperature",
            f"ECE: expected calibration error, {ECE_BINS} bins of equal numbers of rows; Brier: 0 to 2",
            *(f"no temperature scaling of {', '.join(methods)}: {reason}" for reason, methods in reasons.items()),
        ]
        return ReportTable(f"{self._name}: calibration", ["method", "runs", *names], rows, notes)

    def _classes(self) -> ReportTable:
        rows = [
            [
                label,
                method_rows.method,
                *map(_percent, (scores.precision, scores.recall, scores.f1)),
                f"{scores.support:,}",
            ]
            for number, label in enumerate(self.labels)
            for method_rows in self.methods
            for scores in [method_rows.classes[number]]
        ]
        notes = [
            "in percent, of the rows of all runs together",
            f"{MISSING}: a class that is never predicted has no precision, and one without rows no recall",
        ]
        if len(self.labels) > _WIDEST_MATRIX:
            notes.append(f"{len(self.labels)} classes are too many for a confusion matrix: --format json has it")
        header = ["class", "method", "precision", "recall", "F1", "rows"]
        return ReportTable(f"{self._name}: classes", header, rows, notes)

    def _confusions(self) -> ReportTable:
        rows = [
            [label, method_rows.method, *(f"{count:,}" for count in method_rows.confusions[number].tolist())]
            for number, label in enumerate(self.labels)
            for method_rows in self.methods
        ]
        notes = ["rows of a class by what they are predicted as, of all runs together"]
        return ReportTable(f"{self._name}: confusion matrix", ["class", "method", *self.labels], rows, notes)

    @property
    def _name(self) -> str:
        return f"{self.title}, {self.task}"


def _mean(value: Statistic | None) -> str:
    if value is None:
        return MISSING
    return f"{value.mean:.4f}" + (f" ± {value.sd:.4f}" if value.sd is not None else "")


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def all_task_rows(all_results: Iterable[ResultsTable], read: ReadSplit) -> list[TaskRows]:
    """Collects the results from predictions for every classification task of the given results tables."""
    all_rows = (task_rows(results, task, read) for results in all_results for task in results.tasks)
    return [rows for rows in all_rows if rows is not None]


def task_rows(results: ResultsTable, task: str, read: ReadSplit) -> TaskRows | None:
    """Collects the results from the methods' predictions on one task.

    Args:
        results: The methods and their runs.
        task: One of its tasks.
        read: Reads predictions.

    Returns:
        The methods with predictions, in the order of the results table; None if there is none, or if rows do not have
        exactly one label.
    """
    groups = {method: group for method in results.methods if (group := results.cells[method, task].group)}
    labels_of = {method: group.first.classes for method, group in groups.items()}
    labels: list[str] | None = next(iter(labels_of.values()), None)
    if not labels:
        return None
    task_type = next(iter(groups.values())).first.config["task"].get("type")
    if task_type in ("tagging", "multilabel"):
        where = "; the scores of each type of entity are in each record" if task_type == "tagging" else ""
        _log.warning("%s: tables of classes and calibration are of tasks with one label a row%s", task, where)
        return None
    if others := [method for method in groups if labels_of[method] != labels]:
        _log.warning("%s: left out because of other labels than %s: %s", task, next(iter(groups)), ", ".join(others))
    groups = {method: group for method, group in groups.items() if method not in others}
    methods = [rows for method, group in groups.items() if (rows := _method_rows(method, group.records, labels, read))]
    return TaskRows(results.title, task, labels, methods) if methods else None


def _method_rows(method: str, records: list[Record], labels: list[str], read: ReadSplit) -> MethodRows | None:
    by_run = {record.run_key: predictions for record in records if (predictions := read(record, "report")) is not None}
    if not by_run:
        return None
    calibrated = [
        calibrations(by_run[record.run_key], read(record, "selection"))
        for record in records
        if record.run_key in by_run
    ]
    row_ids, labels_of_rows, outputs = (
        np.concatenate([getattr(predictions, part) for predictions in by_run.values()])
        for part in ("row_ids", "labels", "outputs")
    )
    together = Predictions(row_ids, labels_of_rows, outputs)
    return MethodRows(
        method=method,
        runs=len(by_run),
        calibration=_over_runs(calibrated),
        classes=class_scores(together, labels),
        confusions=confusion_matrix(together, len(labels)),
        reason=next((item.reason for item in calibrated if item.reason is not None), None),
    )


def _over_runs(calibrated: list[Calibrations]) -> dict[str, Statistic | None]:
    """Each number over the runs; with temperature scaling only if all runs have it."""
    unscaled = [item.unscaled for item in calibrated]
    scaled = [item.scaled for item in calibrated if item.scaled is not None]
    if len(scaled) < len(calibrated):
        scaled = []
    return {
        "ECE": Statistic.of(calibration.ece for calibration in unscaled),
        "Brier": Statistic.of(calibration.brier for calibration in unscaled),
        "ECE scaled": Statistic.of(calibration.ece for calibration in scaled),
        "Brier scaled": Statistic.of(calibration.brier for calibration in scaled),
        "temperature": Statistic.of(calibration.temperature for calibration in scaled),
    }
