"""The metrics, computed with scikit-learn and scipy; none needs the hub.

`petl_bench.tasks.evaluate_metric` offers each of them as an `evaluate.Metric`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from petl_bench.errors import RequestError, unknown_choice

Scorer = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        score: Computes it from references and predictions, both of shape (rows,).
        task_type: The type of task that it applies to.
        higher_is_better: Whether a higher value is better.
    """

    score: Scorer
    task_type: str
    higher_is_better: bool = True


def _accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))


def _balanced_accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import recall_score

    # balanced_accuracy_score gives the same, but warns where a class is predicted that has no rows.
    return float(recall_score(references, predictions, labels=np.unique(references), average="macro"))


def _matthews(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _correlation(name: str) -> Scorer:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        from scipy import stats

        # The correlation with a constant is undefined. 0 is what scikit-learn gives for Matthews' there, too.
        if np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(getattr(stats, name)(references, predictions).statistic)

    return score


def _mean_squared_error(references: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean((references - predictions) ** 2))


METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(_accuracy, "classification"),
    "f1": MetricSpec(_f1, "classification"),
    "macro_f1": MetricSpec(_macro_f1, "classification"),
    "balanced_accuracy": MetricSpec(_balanced_accuracy, "classification"),
    "matthews_correlation": MetricSpec(_matthews, "classification"),
    "pearson": MetricSpec(_correlation("pearsonr"), "regression"),
    "spearman": MetricSpec(_correlation("spearmanr"), "regression"),
    "mean_squared_error": MetricSpec(_mean_squared_error, "regression", higher_is_better=False),
}


def check_metrics(names: list[str], task_type: str, num_labels: int) -> None:
    """Checks that metrics are known and fit the task.

    Raises:
        RequestError: If one is unknown or does not fit.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_choice("task.metrics", name, METRICS)
        if METRICS[name].task_type != task_type:
            fitting = [other for other, spec in METRICS.items() if spec.task_type == task_type]
            raise RequestError(f"task.metrics: {name} does not fit task.type={task_type}; {', '.join(fitting)} do.")
        if name == "f1" and num_labels != 2:
            raise RequestError(f"task.metrics: f1 is for two classes, this task has {num_labels}: use macro_f1.")


def compute_metrics(names: list[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        names: Keys of `METRICS`.
        predictions: Class indices or values, shape (rows,).
        references: The labels, same shape.

    Returns:
        The value of each metric, by its name.
    """
    scores = {}
    for name in names:
        # Single precision would round means and correlations.
        kind = "int64" if METRICS[name].task_type == "classification" else "float64"
        scores[name] = METRICS[name].score(np.asarray(references, kind), np.asarray(predictions, kind))
    return scores
