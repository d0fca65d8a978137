"""Pseudo-values against the metric computed again without each row."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from petl_bench.records.predictions import names_by_row
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.tasks.metrics import METRICS


def by_definition(metric, labels, predicted):
    n, score = len(labels), METRICS[metric].score
    without = [score(np.delete(labels, row), np.delete(predicted, row)) for row in range(n)]
    return n * score(labels, predicted) - (n - 1) * np.array(without)


def drawn(metric, seed, num_rows=40):
    rng = np.random.default_rng(seed)
    task_types = METRICS[metric].task_types
    if task_types[0] in ("tagging", "multilabel"):
        return drawn_names(rng, num_rows, of_words=task_types == ("tagging",))
    if task_types == ("regression",):
        # Rounded, so that some values tie.
        labels = np.round(rng.uniform(0, 5, num_rows), 1)
        return labels, np.round(labels + rng.normal(size=num_rows), 1)
    classes = 2 if metric == "f1" else 4
    labels = rng.integers(classes, size=num_rows)
    return labels, np.where(rng.random(num_rows) < 0.7, labels, rng.integers(classes, size=num_rows))


def drawn_names(rng, num_rows, *, of_words):
    """Sentences of six words, or rows of up to three labels, of which three in four are predicted right."""
    choices = ["O", "O", "B-x", "I-x", "B-y", "I-y"] if of_words else ["a", "b", "c"]
    rows = []
    for _ in range(num_rows):
        label = rng.choice(choices, 6) if of_words else np.array(choices)[rng.random(3) < 0.4]
        other = rng.choice(choices, 6) if of_words else np.array(choices)[rng.random(3) < 0.4]
        rows.append((label, label if rng.random() < 0.75 else other))
    return tuple(names_by_row([pair[side].tolist() for pair in rows]) for side in (0, 1))


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_pseudo_values(metric):
    for seed in range(3):
        labels, predicted = drawn(metric, seed)
        np.testing.assert_allclose(
            pseudo_values(metric, labels, predicted), by_definition(metric, labels, predicted), atol=1e-9
        )


def test_macro_f1_of_several_labels_a_row():
    labels, predicted = drawn_names(np.random.default_rng(0), 30, of_words=False)
    np.testing.assert_allclose(
        pseudo_values("macro_f1", labels, predicted), by_definition("macro_f1", labels, predicted), atol=1e-9
    )


def test_of_accuracy_they_are_the_rows_themselves():
    assert pseudo_values("accuracy", np.array([0, 1, 1]), np.array([0, 0, 1])).tolist() == [1, 0, 1]


def test_a_class_of_one_row_may_be_left_out():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])
    for metric in ("macro_f1", "balanced_accuracy", "matthews_correlation"):
        np.testing.assert_allclose(
            pseudo_values(metric, labels, predicted), by_definition(metric, labels, predicted), atol=1e-12
        )


def test_constant_predictions_and_unknown_metrics():
    labels, constant = np.array([0, 1, 1, 0]), np.ones(4, dtype=int)
    assert np.isfinite(pseudo_values("matthews_correlation", labels, constant)).all()
    assert np.isfinite(pseudo_values("pearson", labels.astype(float), constant.astype(float))).all()
    assert pseudo_values("somebody's own", labels, constant) is None
    assert pseudo_values("accuracy", labels[:2], constant[:2]) is None


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews_correlation", "pearson"])
def test_their_spread_is_that_of_a_bootstrap(metric):
    labels, predicted = drawn(metric, 0, num_rows=400)
    score = METRICS[metric].score
    found = scipy.stats.bootstrap(
        (labels, predicted), score, paired=True, vectorized=False, n_resamples=400, method="basic", rng=0
    )
    error = pseudo_values(metric, labels, predicted).std(ddof=1) / 20
    assert error == pytest.approx(found.standard_error, rel=0.15)
