"""Properties of a classifier beyond its metrics, from its predictions: scores per class, confusions, and calibration.

Probabilities are calibrated if they match the observed frequencies: of the rows that a run gives 80 %, it has 80 %
right. docs/reports.md defines the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.records.predictions import Predictions

Array = NDArray[Any]

ECE_BINS = 15

# A temperature outside these bounds means that the rows determine no best temperature.
_TEMPERATURES = (0.02, 50.0)


@dataclass(frozen=True)
class ClassScores:
    """How well one class is found; `support` is the number of its rows.

    Precision is None if the class is never predicted, recall if it has no rows, and F1 if both are the case.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def class_scores(predictions: Predictions, labels: list[str]) -> list[ClassScores]:
    """Scores each class.

    Args:
        predictions: The predictions of a classification run.
        labels: The names of all classes, in the order of their indices.

    Returns:
        One entry per class, in the order of `labels`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=range(len(labels)), zero_division=np.nan
    )
    precisions, recalls, f1s, supports = (values.tolist() for values in scores)
    return [
        ClassScores(label, _known(precision), _known(recall), _known(f1), support)
        for label, precision, recall, f1, support in zip(labels, precisions, recalls, f1s, supports, strict=True)
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def confusion_matrix(predictions: Predictions, num_classes: int) -> Array:
    """Counts rows by true and predicted class; shape (classes, classes), one line per true class."""
    from sklearn.metrics import confusion_matrix as counted

    matrix: Array = counted(predictions.labels, predictions.predicted, labels=range(num_classes))
    return matrix


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from the observed outcomes; lower is better.

    Attributes:
        ece: Expected calibration error.
        brier: Brier score.
        temperature: The divisor of the logits; 1 leaves them unchanged.
    """

    ece: float
    brier: float
    temperature: float = 1.0


@dataclass(frozen=True)
class Calibrations:
    """The calibration of a run without and with temperature scaling.

    Attributes:
        scaled: None if no temperature can be fitted; `reason` then says why.
    """

    unscaled: Calibration
    scaled: Calibration | None
    reason: str | None = None


def calibrations(report: Predictions, selection: Predictions | None) -> Calibrations:
    """Measures the calibration on the reported rows, with a temperature fitted on other rows.

    Args:
        report: The predictions on the reported rows.
        selection: The predictions on the rows that selected the checkpoint; None if these are the reported rows.

    Returns:
        The calibration without temperature scaling and, if a temperature can be fitted, with it.
    """
    unscaled = _calibration(report, 1.0)
    if selection is None:
        return Calibrations(unscaled, None, "a temperature must be fitted on rows that are not reported")
    temperature = fit_temperature(selection.outputs, selection.labels)
    if temperature is None:
        return Calibrations(unscaled, None, "the rows of the selection split have no best temperature")
    return Calibrations(unscaled, _calibration(report, temperature))


def _calibration(predictions: Predictions, temperature: float) -> Calibration:
    shares = probabilities(predictions.outputs, temperature)
    return Calibration(
        expected_calibration_error(shares, predictions.labels), brier_score(shares, predictions.labels), temperature
    )


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    """The probabilities of the classes: the softmax of logits divided by a temperature; shape (rows, classes)."""
    from scipy.special import softmax

    shares: Array = softmax(logits.astype(np.float64) / temperature, axis=1)
    return shares


# False-positive rates at which ROC curves are sampled.
_RATES = np.linspace(0, 1, 101)


def roc_curves(known: Predictions, other: Predictions) -> dict[str, Array]:
    """Computes the ROC curve of each score that separates in-distribution rows from others.

    Args:
        known: The report rows, which are positive.
        other: Rows out of distribution.

    Returns:
        True-positive rates at the false-positive rates 0, 0.01, ..., 1, by the name of the score.
    """
    from sklearn.metrics import roc_curve

    is_known = np.repeat([1, 0], [len(known.labels), len(other.labels)])
    curves = {}
    for name in known.scores.keys() & other.scores.keys():
        false, true, _ = roc_curve(is_known, np.concatenate([known.scores[name], other.scores[name]]))
        # If several points have the same false-positive rate, the highest one counts.
        curves[name] = true[np.searchsorted(false, _RATES, side="right") - 1]
    return curves


def fit_temperature(logits: Array, labels: Array) -> float | None:
    """Finds the temperature with the lowest mean negative log-likelihood (Guo et al., ICML 2017).

    Args:
        logits: Shape (rows, classes).
        labels: Class indices, shape (rows,).

    Returns:
        The temperature; None if there is no optimum within the bounds, e.g. if every row is classified correctly.
    """
    from scipy.optimize import brentq

    logits = logits.astype(np.float64)
    mean_of_true = logits[np.arange(len(labels)), labels].mean()

    def slope(log_inverse: float) -> float:
        """The derivative of the loss with respect to 1 / temperature; it increases because the loss is convex."""
        shares = probabilities(logits, np.exp(-log_inverse))
        return float((shares * logits).sum(axis=1).mean() - mean_of_true)

    lowest, highest = (-np.log(bound) for bound in reversed(_TEMPERATURES))
    if not slope(lowest) < 0 < slope(highest):
        return None
    return float(np.exp(-brentq(slope, lowest, highest)))


def expected_calibration_error(shares: Array, labels: Array, num_bins: int = ECE_BINS) -> float:
    """Computes the expected calibration error of the predicted class, using bins with equal numbers of rows.

    In each bin, the share of correct rows is compared with the mean probability of the predicted class. The absolute
    differences are averaged, weighted by the rows of the bins. Rows with equal probabilities share a bin.

    Args:
        shares: Probabilities, shape (rows, classes).
        labels: Class indices, shape (rows,).
        num_bins: Number of bins.
    """
    from scipy.stats import rankdata

    confidence, is_right = shares.max(axis=1), shares.argmax(axis=1) == labels
    bins = ((rankdata(confidence) - 0.5) * num_bins // len(labels)).astype(int)
    return float(np.abs(np.bincount(bins, is_right - confidence)).sum() / len(labels))


def brier_score(shares: Array, labels: Array) -> float:
    """Computes the Brier score: the squared distance to the correct answer, summed over classes; 0 to 2.

    Args:
        shares: Probabilities, shape (rows, classes).
        labels: Class indices, shape (rows,).
    """
    return float(np.square(shares - np.eye(shares.shape[1])[labels]).sum(axis=1).mean())
