"""The bootstrap over rows against the metrics themselves and against other intervals."""

from __future__ import annotations

import numpy as np
import pytest

from petl_bench.reports import bootstrap
from petl_bench.reports.bootstrap import difference_interval
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.tasks.metrics import METRICS

OTHERS = [name for name in METRICS if name != "accuracy"]


def drawn(metric, num_rows, seed=0, worse=0.1):
    """Labels and the predictions of two runs, of which the second is worse."""
    rng = np.random.default_rng(seed)
    if METRICS[metric].task_type == "regression":
        labels = rng.normal(size=num_rows)
        return labels, *(labels + rng.normal(scale=scale, size=num_rows) for scale in (1, 1 + 3 * worse))
    classes = 2 if metric == "f1" else 3
    labels = rng.integers(classes, size=num_rows)
    wrong = (labels + 1) % classes
    return labels, *(np.where(rng.random(num_rows) < share, labels, wrong) for share in (0.8, 0.8 - worse))


@pytest.mark.parametrize("metric", OTHERS)
def test_the_interval_is_that_of_the_metric_computed_for_each_resample(metric, monkeypatch):
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 99)
    monkeypatch.setattr(bootstrap, "_BATCH_ROWS", 10_000)
    labels, first, second = drawn(metric, 120)
    score, rng = METRICS[metric].score, np.random.default_rng(0)
    rows = [rng.integers(0, 120, size=120) for _ in range(99)]
    differences = [score(labels[some], first[some]) - score(labels[some], second[some]) for some in rows]
    # Rows are drawn as SciPy draws them.
    expected = np.percentile(differences, [2.5, 97.5])
    assert difference_interval(metric, labels, first, second) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize("metric", OTHERS)
def test_it_agrees_with_the_jackknife_on_many_rows(metric):
    labels, first, second = drawn(metric, 1500)
    low, high = difference_interval(metric, labels, first, second)
    values = pseudo_values(metric, labels, first) - pseudo_values(metric, labels, second)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)
    # The second run is worse.
    assert low > 0 if METRICS[metric].higher_is_better else high < 0


def test_equal_predictions_differ_by_nothing():
    labels, first, _ = drawn("f1", 100)
    assert difference_interval("f1", labels, first, first) == (0.0, 0.0)


def test_few_rows_and_unknown_metrics_have_no_interval():
    labels, first, second = drawn("f1", 99)
    assert difference_interval("f1", labels, first, second) is None
    labels, first, second = drawn("f1", 100)
    assert difference_interval("somebody's own", labels, first, second) is None
