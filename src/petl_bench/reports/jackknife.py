"""The contribution of each row to a metric: jackknife pseudo-values, which give any metric a variance over rows.

The pseudo-value of row i among n is n times the metric minus n - 1 times the metric without that row (Quenouille 1956,
Tukey 1958). For a mean, such as accuracy, it is the row's own value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def pseudo_values(metric: str, labels: Array, predicted: Array) -> Array | None:
    """Computes the pseudo-values of one of the metrics of `petl_bench.tasks.metrics`.

    Args:
        metric: Its name.
        labels: Class indices, the values of a regression task, or one tuple of names per row, as in `Predictions`;
            shape (rows,).
        predicted: The predicted classes, values or names, shape (rows,).

    Returns:
        The pseudo-values, shape (rows,); None for a metric that is unknown here, and for fewer than three rows.
    """
    num_rows = len(labels)
    if num_rows < 3:
        return None
    if metric in ("accuracy", "subset_accuracy"):
        return (labels == predicted).astype(float)
    if metric == "mean_squared_error":
        return (labels - predicted) ** 2
    if labels.dtype == object and metric in _OF_NAMES:
        whole, without = _leave_one_out_names(metric, labels, predicted)
    elif metric in _OF_COUNTS:
        whole, without = _leave_one_out_counts(_OF_COUNTS[metric], labels, predicted)
    elif metric in _OF_VALUES:
        whole, without = _OF_VALUES[metric](labels.astype(float), predicted.astype(float))
    else:
        return None
    return num_rows * whole - (num_rows - 1) * without


# Class metrics depend only on three counts per class: rows of the class, rows predicted as it, rows that are both.
# Each function takes them as arrays of shape (cases, classes), with the number of rows as (cases,).


def _f1(true: Array, predicted: Array, both: Array, _rows: Array) -> Array:
    return _ratio(2 * both[:, 1], true[:, 1] + predicted[:, 1])


def _macro_f1(true: Array, predicted: Array, both: Array, _rows: Array) -> Array:
    seen = (true + predicted) > 0
    return _ratio(2 * both, true + predicted).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)


def _balanced_accuracy(true: Array, _predicted: Array, both: Array, _rows: Array) -> Array:
    return _ratio(both, true).sum(axis=1) / (true > 0).sum(axis=1)


def _matthews(true: Array, predicted: Array, both: Array, rows: Array) -> Array:
    covariance = both.sum(axis=1) * rows - (true * predicted).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


def _ratio(above: Array, below: Array) -> Array:
    """Divides; the result is 0 where the divisor is 0, as in scikit-learn."""
    return np.divide(above, below, out=np.zeros_like(below, dtype=float), where=below > 0)


_OF_COUNTS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "f1": _f1,
    "macro_f1": _macro_f1,
    "balanced_accuracy": _balanced_accuracy,
    "matthews_correlation": _matthews,
}


def _leave_one_out_counts(
    metric: Callable[[Array, Array, Array, Array], Array], labels: Array, predicted: Array
) -> tuple[float, Array]:
    """The metric on all rows, and without each; rows with the same label and prediction share one computation."""
    num_classes = int(max(labels.max(), predicted.max(), 1)) + 1
    cells, cell_of_row = np.unique(np.stack([labels, predicted]), axis=1, return_inverse=True)
    one_hot = np.eye(num_classes)
    true, guessed = one_hot[cells[0]], one_hot[cells[1]]
    parts = [true, guessed, true * guessed]
    counts = np.bincount(cell_of_row.ravel())
    totals = [(counts[:, None] * part).sum(axis=0) for part in parts]
    # The last case leaves nothing out.
    true, guessed, both = (np.vstack([total - part, total[None]]) for total, part in zip(totals, parts, strict=True))
    scores = metric(true, guessed, both, np.append(np.full(len(counts), len(labels) - 1.0), len(labels)))
    return float(scores[-1]), scores[:-1][cell_of_row.ravel()]


# Metrics of rows with several names each (the entities of a sentence, or the labels of a row) depend on the same counts
# by entity type or label: the true ones, the predicted ones, and those that are both.


def _micro_f1(true: Array, predicted: Array, both: Array, _rows: Array) -> Array:
    return _ratio(2 * both.sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1))


def _precision(_true: Array, predicted: Array, both: Array, _rows: Array) -> Array:
    return _ratio(both.sum(axis=1), predicted.sum(axis=1))


def _recall(true: Array, _predicted: Array, both: Array, _rows: Array) -> Array:
    return _ratio(both.sum(axis=1), true.sum(axis=1))


_OF_NAMES: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "entity_f1": _micro_f1,
    "entity_precision": _precision,
    "entity_recall": _recall,
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
}


def _leave_one_out_names(metric: str, labels: Array, predicted: Array) -> tuple[float, Array]:
    """The metric on all rows, and without each of them."""
    items = [[_items(metric, names) for names in rows] for rows in (labels, predicted)]
    all_kinds = sorted({kind for rows in items for row in rows for kind, *_ in row})
    kinds = {kind: index for index, kind in enumerate(all_kinds)}
    sides = [*items, [true & guessed for true, guessed in zip(*items, strict=True)]]
    counts = [np.zeros((len(labels) + 1, max(len(kinds), 1))) for _ in sides]
    for count, rows in zip(counts, sides, strict=True):
        for number, row in enumerate(rows):
            for kind, *_ in row:
                count[number, kinds[kind]] += 1
    # The last case leaves nothing out.
    true, guessed, both = (count.sum(axis=0) - count for count in counts)
    scores = _OF_NAMES[metric](true, guessed, both, np.append(np.full(len(labels), len(labels) - 1.0), len(labels)))
    return float(scores[-1]), scores[:-1]


def _items(metric: str, names: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """The items of a row that are scored: its entities with type, first and last word, or its labels."""
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(list(names))) if metric.startswith("entity_") else {(name,) for name in names}


def _pearson(labels: Array, predicted: Array) -> tuple[float, Array]:
    x, y = labels - labels.mean(), predicted - predicted.mean()
    n = len(x)
    # Leaving a row out of centred sums changes them by n / (n - 1) times its products.
    factor = n / (n - 1)
    xx, yy, xy = (x * x).sum(), (y * y).sum(), (x * y).sum()
    without = _ratio(xy - factor * x * y, np.sqrt(np.maximum((xx - factor * x * x) * (yy - factor * y * y), 0)))
    return float(_ratio(np.array(xy), np.array(np.sqrt(xx * yy)))), without


def _spearman(labels: Array, predicted: Array) -> tuple[float, Array]:
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (labels, predicted)]
    # Without row i, the ranks above it fall by one, and those that tie with it by one half.
    lower = [
        rank - (values[None, :] > values[:, None]) - 0.5 * (values[None, :] == values[:, None])
        for rank, values in zip(ranks, (labels, predicted), strict=True)
    ]
    for rank in lower:
        np.fill_diagonal(rank, np.nan)
        rank -= np.nanmean(rank, axis=1, keepdims=True)
        np.fill_diagonal(rank, 0.0)
    x, y = lower
    without = _ratio((x * y).sum(axis=1), np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1)))
    return _pearson(ranks[0], ranks[1])[0], without


_OF_VALUES: dict[str, Callable[[Array, Array], tuple[float, Array]]] = {"pearson": _pearson, "spearman": _spearman}
