"""`petl-bench compare`: two finished runs of one task, row by row, from the predictions that they have kept."""

from __future__ import annotations

import reprlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.config import RunConfig, config_from_dict
from petl_bench.errors import RequestError, RunError
from petl_bench.records.predictions import PREDICTIONS_FILE, Predictions
from petl_bench.records.run_key import backbone_name, method_label
from petl_bench.records.schema import Record
from petl_bench.records.store import RECORD_FILE, RunFolder
from petl_bench.reports.classification import Calibration, calibrations
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.reports.run_comparison import AccuracyTest, Figure, RowDifference, RunComparison, RunSummary
from petl_bench.reports.significance import mcnemar, over_rows
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.load import load_task
from petl_bench.tasks.metrics import METRICS, compute_metrics

Array = NDArray[Any]

# Intervals over fewer rows are too narrow.
_LEAST_ROWS = 100


@dataclass(frozen=True)
class _Run:
    """A finished run with the predictions that it has kept."""

    folder: Path
    record: Record
    config: RunConfig
    predictions: Predictions

    @property
    def task(self) -> TaskConfig:
        """The task's settings."""
        return self.config.task


def compare_runs(first: str | Path, second: str | Path, data_root: str | None = None) -> RunComparison:
    """Compares two finished runs of one task on the rows that both have predicted.

    Args:
        first: Folder or record of run A.
        second: Folder or record of run B.
        data_root: Folder of the task's rows, whose texts are shown; None: that of run A.

    Returns:
        The metrics of both, their calibration and agreement, and the rows on which they differ.

    Raises:
        RequestError: If a run is not finished or has kept no predictions, or the runs answer different questions.
    """
    runs = _open_run(first), _open_run(second)
    _check_same_task(*runs)
    a, b, positions = _shared_rows(*runs)
    record, config, settings = runs[0].record, runs[0].config, runs[0].task
    assert record.protocol
    comparison = RunComparison(
        task=record.protocol.task,
        split=record.protocol.report_split,
        metric=record.protocol.metric,
        a=_summary(runs[0]),
        b=_summary(runs[1]),
        rows=len(a.labels),
        metrics=_metrics([name for name in settings.metrics if name in METRICS], a, b),
        differences=_differences(a, b, positions, record.classes),
    )
    if settings.type != "regression":
        comparison.agreement_percent = 100 * float((a.predicted == b.predicted).mean())
    if settings.type in ("tagging", "multilabel"):
        comparison.notes.append(
            "a label here is "
            + ("the tags of a sentence" if settings.type == "tagging" else "all labels of a row")
            + "; McNemar's test and calibration are of tasks with one label a row"
        )
    if settings.type == "classification":
        comparison.accuracy_test = _accuracy_test(a, b)
        _add_calibration(comparison, runs, (a, b))
    if comparison.differences:
        _add_texts(comparison, config, data_root)
    return comparison


def _open_run(path: str | Path) -> _Run:
    folder = Path(path).parent if Path(path).name == RECORD_FILE else Path(path)
    try:
        record = RunFolder(folder).read_whole() if folder.is_dir() else None
    except ValueError as error:
        raise RequestError(f"{error}.") from error
    if record is None:
        raise RequestError(f"{path} holds no finished run ({RECORD_FILE}): give the folder of a single run.")
    if record.status != "finished":
        raise RequestError(f"{path} is no finished run, its record says {record.status}: make the run again.")
    predictions = _read_predictions(folder, record, "report")
    if predictions is None:
        raise RequestError(
            f"{path} has kept no predictions ({PREDICTIONS_FILE}): the run made again with force=true and "
            "measure.predictions=true keeps them."
        )
    return _Run(folder, record, config_from_dict(record.config), predictions)


def _read_predictions(folder: Path, record: Record, split: str) -> Predictions | None:
    try:
        return RunFolder(folder).read_predictions(record, split)
    except ValueError as error:
        raise RequestError(f"{error}.") from error


def _check_same_task(a: _Run, b: _Run) -> None:
    for key in ("name", "type", "labels"):
        of_a, of_b = (run.record.classes if key == "labels" else getattr(run.task, key) for run in (a, b))
        if of_a != of_b:
            raise RequestError(
                f"{a.folder} and {b.folder} are runs of different tasks: task.{key} is {reprlib.repr(of_a)} in the "
                f"first and {reprlib.repr(of_b)} in the second."
            )


def _shared_rows(a: _Run, b: _Run) -> tuple[Predictions, Predictions, Array]:
    """The predictions of both runs for the rows that both have, in the order of A, and their positions in A."""
    _, first, second = np.intersect1d(
        _numbered(a.predictions.row_ids), _numbered(b.predictions.row_ids), assume_unique=True, return_indices=True
    )
    if not len(first):
        raise RequestError(
            f"{a.folder} and {b.folder} predicted no row in common, as they report on different rows: compare runs "
            "of one task and protocol."
        )
    order = np.argsort(first)
    first, second = first[order], second[order]
    rows_a, rows_b = a.predictions.take(first), b.predictions.take(second)
    if len(other := np.flatnonzero(rows_a.labels != rows_b.labels)):
        raise RequestError(
            f"{a.folder} and {b.folder} have other labels for the same texts, first in row {first[other[0]]}: compare "
            "runs on the same labels."
        )
    return rows_a, rows_b, first


def _numbered(row_ids: Array) -> Array:
    """Makes ids unique: rows with equal texts are paired in their order."""
    seen: Counter[str] = Counter()
    numbered = []
    for row_id in row_ids.tolist():
        numbered.append(f"{row_id}-{seen[row_id]}")
        seen[row_id] += 1
    return np.array(numbered)


def _summary(run: _Run) -> RunSummary:
    config = run.record.config
    return RunSummary(
        folder=str(run.folder),
        method=method_label(config["method"]),
        backbone=backbone_name(config["backbone"]),
        seed=run.config.train.seed,
        rows=len(run.predictions.labels),
    )


def _metrics(names: list[str], a: Predictions, b: Predictions) -> list[Figure]:
    scores = [compute_metrics(names, rows.predicted, rows.labels) for rows in (a, b)]
    figures = [Figure(name, scores[0][name], scores[1][name], METRICS[name].higher_is_better) for name in names]
    # For accuracy, McNemar's test is more informative.
    return [
        figure if figure.name == "accuracy" else replace(figure, interval=_interval(figure, a, b)) for figure in figures
    ]


def _interval(figure: Figure, a: Predictions, b: Predictions) -> tuple[float, float] | None:
    """The 95 % interval of the difference for other rows; None for fewer than `_LEAST_ROWS`."""
    values = [pseudo_values(figure.name, rows.labels, rows.predicted) for rows in (a, b)]
    if len(a.labels) < _LEAST_ROWS or values[0] is None or values[1] is None:
        return None
    return over_rows(values[0] - values[1], figure.a - figure.b).interval()


def _accuracy_test(a: Predictions, b: Predictions) -> AccuracyTest:
    right = [rows.predicted == rows.labels for rows in (a, b)]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return AccuracyTest(only_a, only_b, mcnemar(only_a, only_b))


def _add_calibration(
    comparison: RunComparison, runs: tuple[_Run, _Run], predictions: tuple[Predictions, Predictions]
) -> None:
    """Adds the calibration, also after temperature scaling if both runs allow it, else the reason why not."""
    a, b = (
        calibrations(rows, _read_predictions(run.folder, run.record, "selection"))
        for run, rows in zip(runs, predictions, strict=True)
    )
    comparison.calibration = _calibration_figures("", a.unscaled, b.unscaled)
    if a.scaled is None or b.scaled is None:
        comparison.notes.append(f"calibration without temperature scaling: {a.reason or b.reason}")
    else:
        comparison.calibration += _calibration_figures(", scaled", a.scaled, b.scaled)
        comparison.temperatures = (a.scaled.temperature, b.scaled.temperature)


def _calibration_figures(suffix: str, a: Calibration, b: Calibration) -> list[Figure]:
    return [
        Figure(f"calibration error{suffix}", a.ece, b.ece, higher_is_better=False),
        Figure(f"Brier score{suffix}", a.brier, b.brier, higher_is_better=False),
    ]


def _differences(a: Predictions, b: Predictions, positions: Array, labels: list[str] | None) -> list[RowDifference]:
    """The rows with different predictions: in the order of A or, for values, the largest difference first."""
    predicted_a, predicted_b = a.predicted, b.predicted
    rows = np.flatnonzero(predicted_a != predicted_b)
    if labels is None:
        distances = np.abs(predicted_a - predicted_b)[rows]
        rows = rows[np.argsort(-distances, kind="stable")]

    def name(value: Any) -> str | float:
        if isinstance(value, tuple):
            return " ".join(value)
        return float(value) if labels is None else labels[int(value)]

    def right(row: int) -> str | None:
        """Which run is right about a row."""
        if labels is None:
            return None
        label = a.labels[row]
        return "A" if predicted_a[row] == label else "B" if predicted_b[row] == label else "neither"

    return [
        RowDifference(
            row=int(positions[row]),
            row_id=str(a.row_ids[row]),
            label=name(a.labels[row]),
            a=name(predicted_a[row]),
            b=name(predicted_b[row]),
            right=right(row),
        )
        for row in rows.tolist()
    ]


def _add_texts(comparison: RunComparison, config: RunConfig, data_root: str | None) -> None:
    """Adds the texts of the rows, which are read again, or a note that says why they cannot be shown."""
    try:
        rows = load_task(config.task, data_root or config.data_root).report
    except (RequestError, RunError) as error:
        comparison.notes.append(f"the texts of the rows cannot be shown: {error}")
        return
    texts = dict(zip(rows.ids().tolist(), zip(*rows.texts, strict=True), strict=True))
    if any(difference.row_id not in texts for difference in comparison.differences):
        comparison.notes.append("the texts of the rows cannot be shown: the task has other rows by now")
        return
    for difference in comparison.differences:
        difference.texts = list(texts[difference.row_id])
