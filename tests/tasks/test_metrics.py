"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest

from petl_bench.tasks.evaluate_metric import TaskMetric
from petl_bench.tasks.metrics import METRICS, compute_metrics

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 0])
GUESSES = np.array([1, 0, 1, 0, 1, 1, 0, 0])
# true positives 3, false positives 1, false negatives 1, true negatives 3


def test_classification_by_hand():
    scores = compute_metrics(["accuracy", "f1", "macro_f1", "matthews_correlation"], GUESSES, LABELS)
    assert scores["accuracy"] == 6 / 8
    assert scores["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx(0.75)
    assert scores["matthews_correlation"] == pytest.approx((3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4))


def test_regression_by_hand():
    references, predictions = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0])
    scores = compute_metrics(["pearson", "spearman", "mean_squared_error"], predictions, references)
    assert scores["pearson"] == pytest.approx(25 / math.sqrt(5 * 129))
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["mean_squared_error"] == pytest.approx((0 + 4 + 36 + 144) / 4)


def test_constant_predictions_score_zero():
    constant = np.ones(4)
    assert compute_metrics(["pearson", "spearman"], constant, np.arange(4.0)) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_metrics(["matthews_correlation", "f1"], np.zeros(4, dtype=int), np.array([0, 1, 0, 1])) == {
        "matthews_correlation": 0.0,
        "f1": 0.0,
    }


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_an_evaluate_metric_without_the_hub(name):
    metric = TaskMetric(name)
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1, 0], references=[1, 0])
    assert metric.compute()[name] == pytest.approx(0.0 if name == "mean_squared_error" else 1.0)


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_the_evaluate_metric(name):
    rows = np.random.default_rng(0)
    if METRICS[name].task_type == "classification":
        predictions, references = rows.integers(2, size=50), rows.integers(2, size=50)
    else:
        predictions, references = rows.normal(size=50).astype("float32"), rows.normal(size=50)
    scores = compute_metrics([name], predictions, references)
    assert scores == TaskMetric(name).compute(predictions=predictions, references=references)


def test_only_errors_are_better_when_lower():
    assert [name for name, spec in METRICS.items() if not spec.higher_is_better] == ["mean_squared_error"]
