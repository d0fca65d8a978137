"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from petl_bench.run.run import run
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


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur():
    labels, guesses = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    # Recalls are 3/4 and 1/2. Class 2 is predicted once, but has no rows.
    assert compute_metrics(["balanced_accuracy"], guesses, labels) == {"balanced_accuracy": 0.625}
    with pytest.warns(UserWarning, match="classes not in y_true"):
        assert balanced_accuracy_score(labels, guesses) == 0.625


def test_metrics_of_several_classes_are_selectable(tiny):
    chosen = ["task.metrics=[accuracy,macro_f1,balanced_accuracy]", "task.metric=balanced_accuracy"]
    record = run(tiny("method=head", *chosen))
    assert record.protocol.metric == "balanced_accuracy"
    assert record.selected_scores.keys() == {"accuracy", "macro_f1", "balanced_accuracy"}


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
