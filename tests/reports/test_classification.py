"""Scores of classes and calibration, against figures by hand and against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import brier_score_loss, classification_report, log_loss

from petl_bench.records.predictions import Predictions
from petl_bench.reports.classification import (
    ClassScores,
    brier_score,
    calibrations,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    probabilities,
)


def predictions_of(labels, predicted, num_classes):
    ids = np.array([f"{number:016x}" for number in range(len(labels))])
    return Predictions(ids, np.array(labels), np.eye(num_classes, dtype=np.float32)[predicted])


def drawn(num_rows, num_classes, seed=0, temperature=1.0):
    """Logits, and labels drawn from their probabilities at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(num_rows, num_classes)).astype(np.float32)
    cumulated = probabilities(logits, temperature).cumsum(axis=1)
    labels = (rng.random((num_rows, 1)) > cumulated).sum(axis=1).clip(max=num_classes - 1)
    return Predictions(np.array([f"{number:016x}" for number in range(num_rows)]), labels, logits)


def test_scores_of_classes_by_hand():
    found = class_scores(predictions_of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1], 4), ["a", "b", "c", "d"])
    assert found == [
        ClassScores("a", 1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3),
        ClassScores("b", 0.5, 1.0, pytest.approx(2 / 3), 2),
        # Class c is never predicted; d has no rows either.
        ClassScores("c", None, 0.0, 0.0, 1),
        ClassScores("d", None, None, None, 0),
    ]


def test_scores_of_classes_are_those_of_the_library():
    kept = drawn(200, 3)
    expected = classification_report(kept.labels, kept.predicted, output_dict=True)
    for number, scores in enumerate(class_scores(kept, ["a", "b", "c"])):
        wanted = expected[str(number)]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == (
            wanted["precision"], wanted["recall"], wanted["f1-score"], wanted["support"],
        )  # fmt: skip


def test_confusions_have_a_line_for_each_true_class():
    matrix = confusion_matrix(predictions_of([0, 0, 0, 1], [0, 1, 1, 1], 3), 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_calibration_error_of_constructed_bins():
    # Two bins of two rows each: means 0.55 and 0.85 of the probability, 1/2 and 1 of the rows right.
    confidence = np.array([0.8, 0.5, 0.9, 0.6])
    shares = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 0, 0, 1])
    assert expected_calibration_error(shares, labels, num_bins=2) == pytest.approx((0.05 + 0.15) / 2)
    # One bin: the mean probability is 0.7, 3/4 are right.
    assert expected_calibration_error(shares, labels, num_bins=1) == pytest.approx(0.05)


def test_bins_hold_equal_numbers_of_rows():
    # With as many rows in each of 15 bins, a bin is 10 rows in the order of their probability.
    kept = drawn(150, 3)
    shares = probabilities(kept.outputs)
    order = np.argsort(shares.max(axis=1))
    is_right = (kept.predicted == kept.labels)[order].reshape(15, 10)
    confidence = shares.max(axis=1)[order].reshape(15, 10)
    expected = np.abs(is_right.mean(axis=1) - confidence.mean(axis=1)).mean()
    assert expected_calibration_error(shares, kept.labels) == pytest.approx(expected)


def test_rows_of_equal_probability_share_a_bin_in_whatever_order_they_are():
    shares, labels = np.full((30, 2), [0.8, 0.2]), np.repeat([0, 1], [24, 6])
    assert expected_calibration_error(shares, labels) == pytest.approx(0.0)
    assert expected_calibration_error(shares, labels[::-1]) == pytest.approx(0.0)


def test_brier_score_sums_over_classes():
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    assert brier_score(shares, np.array([0, 1])) == pytest.approx(
        (0.3**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.7**2 + 0.6**2) / 2
    )
    kept = drawn(100, 2)
    shares = probabilities(kept.outputs)
    # Of two classes, the library takes one alone.
    assert brier_score(shares, kept.labels) == pytest.approx(2 * brier_score_loss(kept.labels, shares[:, 1]))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_temperature_has_the_lowest_log_loss(num_classes):
    kept = drawn(4000, num_classes, temperature=2.5)

    def loss(log_temperature):
        scaled = kept.outputs / np.exp(log_temperature)
        return (logsumexp(scaled, axis=1) - scaled[np.arange(len(scaled)), kept.labels]).mean()

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(kept.outputs, kept.labels)
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found == pytest.approx(2.5, rel=0.1)
    assert loss(np.log(found)) == pytest.approx(log_loss(kept.labels, probabilities(kept.outputs, found)), abs=1e-5)


def test_scaling_makes_overconfident_runs_honest_and_leaves_their_predictions():
    report, selection = (drawn(3000, 4, seed=seed, temperature=3.0) for seed in (1, 2))
    found = calibrations(report, selection)
    assert found.reason is None
    assert found.scaled.temperature == pytest.approx(3.0, rel=0.1)
    assert found.scaled.ece < 0.05 < 0.2 < found.unscaled.ece
    assert found.scaled.brier < found.unscaled.brier
    assert found.unscaled.temperature == 1.0


def test_rows_that_are_reported_fit_no_temperature():
    found = calibrations(drawn(50, 2), None)
    assert found.scaled is None
    assert "rows that are not reported" in found.reason


@pytest.mark.parametrize("labels", [[0, 1, 0], [1, 0, 1]])
def test_rows_that_are_all_right_or_all_wrong_have_no_best_temperature(labels):
    kept = Predictions(np.array(["a", "b", "c"]), np.array(labels), np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]))
    assert fit_temperature(kept.outputs, kept.labels) is None
    assert "no best temperature" in calibrations(kept, kept).reason
