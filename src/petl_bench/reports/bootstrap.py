"""The interval of the difference of two runs in any metric, by a bootstrap over rows.

The metric of thousands of resamples is computed at once: with a call of scikit-learn for each, F1 takes a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.reports.jackknife import METRICS_OF_COUNTS

Array = NDArray[Any]

# Percentile intervals over fewer rows are too narrow (docs/reports.md).
LEAST_ROWS = 100

_RESAMPLES = 9_999
_SEED = 0

# Rows that are drawn at once, which bounds the memory.
_BATCH_ROWS = 2_000_000


def difference_interval(metric: str, labels: Array, first: Array, second: Array) -> tuple[float, float] | None:
    """Computes the 95 % percentile interval of the first run's metric minus the second's, for other rows.

    Rows are drawn with what both runs predict for them.

    Args:
        metric: A name of `petl_bench.tasks.metrics.METRICS`, but for accuracy, which McNemar's test compares.
        labels: Class indices, or the values of a regression task, shape (rows,).
        first: The classes or values that the first run predicts, shape (rows,).
        second: Those that the second run predicts, shape (rows,).

    Returns:
        The bounds; None for a metric that is not known here, and for fewer than `LEAST_ROWS` rows.
    """
    from scipy.stats import bootstrap

    if len(labels) < LEAST_ROWS:
        return None
    samples: tuple[Array, ...]
    difference: Callable[..., Array]
    if metric in METRICS_OF_COUNTS:
        cells, data = np.unique(np.stack([labels, first, second]), axis=1, return_inverse=True)
        samples, difference = (data.ravel(),), _difference_of_counts(metric, cells)
    elif metric == "spearman":
        # It depends on the order of the values alone, and counts of whole numbers give ranks without sorting.
        orders = (np.unique(values, return_inverse=True)[1] for values in (labels, first, second))
        samples, difference = tuple(orders), _spearman
    elif metric in _OF_VALUES:
        samples, difference = tuple(values.astype(float) for values in (labels, first, second)), _OF_VALUES[metric]
    else:
        return None
    found = bootstrap(
        samples,
        difference,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_ROWS // len(labels)),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _difference_of_counts(metric: str, cells: Array) -> Callable[..., Array]:
    """Computes the difference from how often each combination of label and two predictions was drawn.

    Args:
        metric: A name of `METRICS_OF_COUNTS`.
        cells: The combinations: label, prediction of the first, prediction of the second; shape (3, combinations).
    """
    score, num_cells = METRICS_OF_COUNTS[metric], cells.shape[1]
    true, first, second = np.eye(max(int(cells.max()), 1) + 1)[cells]

    def difference(drawn: Array, axis: int = -1) -> Array:
        samples = drawn.reshape(-1, drawn.shape[axis])
        counts = _counts(samples, num_cells).astype(float)
        num_rows = np.full(len(samples), float(samples.shape[1]))
        scores = [score(counts @ true, counts @ one, counts @ (true * one), num_rows) for one in (first, second)]
        return (scores[0] - scores[1]).reshape(drawn.shape[:-1])

    return difference


def _counts(samples: Array, num_values: int) -> Array:
    """Counts the values 0, 1, ... of each sample; takes shape (samples, rows), gives shape (samples, values)."""
    offsets = num_values * np.arange(len(samples))[:, None]
    counts = np.bincount((samples + offsets).ravel(), minlength=num_values * len(samples))
    return counts.reshape(len(samples), num_values)


def _correlation(x: Array, y: Array, axis: int) -> Array:
    """Pearson's correlation along an axis; 0 where one side is constant, as in a run's scores."""
    x, y = (values - values.mean(axis=axis, keepdims=True) for values in (x, y))
    products, spread = (x * y).sum(axis=axis), np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return np.divide(products, spread, out=np.zeros_like(products), where=spread > 0)


def _pearson(labels: Array, first: Array, second: Array, axis: int = -1) -> Array:
    return _correlation(labels, first, axis) - _correlation(labels, second, axis)


def _spearman(labels: Array, first: Array, second: Array, axis: int = -1) -> Array:
    return _pearson(_ranks(labels), _ranks(first), _ranks(second), axis)


def _ranks(drawn: Array) -> Array:
    """The ranks of whole numbers in each sample; equal ones share the mean of their ranks."""
    samples = drawn.reshape(-1, drawn.shape[-1])
    counts = _counts(samples, int(samples.max()) + 1)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    return np.take_along_axis(ranks, samples, axis=1).reshape(drawn.shape)


def _mean_squared_error(labels: Array, first: Array, second: Array, axis: int = -1) -> Array:
    return ((labels - first) ** 2 - (labels - second) ** 2).mean(axis=axis)


_OF_VALUES = {"pearson": _pearson, "mean_squared_error": _mean_squared_error}
