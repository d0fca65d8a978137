"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from petl_bench.records.predictions import TypeScores, names_by_row
from petl_bench.run.run import run
from petl_bench.tasks.metrics import METRICS, compute_metrics, evaluate_metric, type_scores

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


# Of two labels, and of sentences of two words.
LABEL_SETS = [["a"], ["a", "b"], [], ["b"]]
TAGS = [["B-x", "I-x"], ["O", "B-y"], ["O", "O"], ["B-x", "B-x"]]


def is_of(name, task_type):
    return task_type in METRICS[name].task_types


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_an_evaluate_metric_without_the_hub(name):
    metric = evaluate_metric(name)
    assert isinstance(metric, evaluate.Metric)
    rows = TAGS if is_of(name, "tagging") else [0, 1, 1, 0]
    if not is_of(name, "classification") and is_of(name, "multilabel"):
        rows = LABEL_SETS
    metric.add_batch(predictions=rows[:2], references=rows[:2])
    metric.add_batch(predictions=rows[2:], references=rows[2:])
    assert metric.compute()[name] == pytest.approx(0.0 if name == "mean_squared_error" else 1.0)


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_the_evaluate_metric(name):
    rows = np.random.default_rng(0)
    if not is_of(name, "classification") and not is_of(name, "regression"):
        choices = TAGS if is_of(name, "tagging") else LABEL_SETS
        predictions, references = ([choices[index] for index in rows.integers(4, size=50)] for _ in range(2))
        scores = compute_metrics([name], names_by_row(predictions), names_by_row(references))
        assert scores == evaluate_metric(name).compute(predictions=predictions, references=references)
        return
    if is_of(name, "classification"):
        predictions, references = rows.integers(2, size=50), rows.integers(2, size=50)
    else:
        predictions, references = rows.normal(size=50).astype("float32"), rows.normal(size=50)
    scores = compute_metrics([name], predictions, references)
    assert scores == evaluate_metric(name).compute(predictions=predictions, references=references)


def test_multilabel_by_hand():
    # Labels a: right 1, predicted 2, true 1; b: right 1, predicted 1, true 2; c: only predicted; d occurs nowhere.
    labels = names_by_row([["a", "b"], ["b"], [], []])
    guesses = names_by_row([["a", "b"], ["a", "c"], [], []])
    scores = compute_metrics(["micro_f1", "macro_f1", "subset_accuracy"], guesses, labels)
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores["subset_accuracy"] == 3 / 4
    nothing = names_by_row([[], []])
    assert compute_metrics(["micro_f1", "subset_accuracy"], nothing, nothing) == {
        "micro_f1": 0.0,
        "subset_accuracy": 1.0,
    }


def test_entities_by_hand():
    # person 0..1 is right; location 3 gets another type; organization 0..1 another end; person 3 begins without B-.
    labels = names_by_row([["B-per", "I-per", "O", "B-loc"], ["B-org", "I-org", "O", "I-per"]])
    guesses = names_by_row([["B-per", "I-per", "O", "B-per"], ["B-org", "O", "O", "B-per"]])
    scores = compute_metrics(["entity_precision", "entity_recall", "entity_f1"], guesses, labels)
    assert scores == {"entity_precision": 2 / 4, "entity_recall": 2 / 4, "entity_f1": 2 / 4}
    types = type_scores(labels, guesses)
    assert list(types) == ["loc", "org", "per"]
    assert types["per"] == TypeScores(precision=2 / 3, recall=1.0, f1=0.8, support=2)
    assert types["loc"] == TypeScores(precision=0.0, recall=0.0, f1=0.0, support=1)
    none = names_by_row([["O", "O"]])
    assert compute_metrics(["entity_f1"], none, none) == {"entity_f1": 0.0}


def test_only_errors_are_better_when_lower():
    assert [name for name, spec in METRICS.items() if not spec.higher_is_better] == ["mean_squared_error"]
