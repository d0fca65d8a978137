"""The metrics, computed with scikit-learn and scipy behind `evaluate.Metric`; none needs the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from petl_bench.errors import RequestError, unknown_choice

Scorer = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MetricSpec:
    """One metric: how it is computed, what it applies to, which way is better."""

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


def _matthews(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _correlation(name: str) -> Scorer:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        from scipy import stats

        # A constant side has no correlation; 0 is what Matthews says of it, too.
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
    "matthews_correlation": MetricSpec(_matthews, "classification"),
    "pearson": MetricSpec(_correlation("pearsonr"), "regression"),
    "spearman": MetricSpec(_correlation("spearmanr"), "regression"),
    "mean_squared_error": MetricSpec(_mean_squared_error, "regression", higher_is_better=False),
}


def check_metrics(names: list[str], task_type: str, num_labels: int) -> None:
    """Raises RequestError for a metric that is unknown or does not fit the task."""
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
    """
    from petl_bench.tasks.evaluate_metric import TaskMetric

    scores: dict[str, float] = {}
    for name in names:
        scores |= TaskMetric(name).compute(predictions=predictions, references=references)
    return scores
