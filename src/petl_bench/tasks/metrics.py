"""The metrics, computed with scikit-learn, scipy and seqeval; none needs the hub.

`petl_bench.tasks.evaluate_metric` offers each of them as an `evaluate.Metric`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.tasks.entities import entity_scores

Scorer = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        score: Computes it from references and predictions, both of shape (rows,): class indices, values, or of dtype
            object with the names that each row has, the tags of its words or its labels.
        task_types: The types of task that it applies to.
        higher_is_better: Whether a higher value is better.
    """

    score: Scorer
    task_types: tuple[str, ...]
    higher_is_better: bool = True


def _accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if references.dtype != object:
        return float(f1_score(references, predictions, average="macro", zero_division=0.0))
    references, predictions = _indicators(references, predictions)
    by_label = f1_score(references, predictions, average=None, zero_division=0.0)[:-2]
    return float(by_label.mean()) if len(by_label) else 0.0


def _micro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(*_indicators(references, predictions), average="micro", zero_division=0.0))


def _subset_accuracy(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_indicators(references, predictions)))


def _indicators(references: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the labels that occur or are predicted each row has; two more columns are of labels that none has."""
    names = sorted({name for row in (*references, *predictions) for name in row})

    def indicators(rows: np.ndarray) -> np.ndarray:
        # scikit-learn takes one column for two classes, 0 and 1.
        return np.array([[*(name in row for name in names), False, False] for row in rows], dtype=int)

    return indicators(references), indicators(predictions)


def _entities(position: int) -> Scorer:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        return entity_scores(references, predictions)[position]

    return score


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
    "accuracy": MetricSpec(_accuracy, ("classification",)),
    "f1": MetricSpec(_f1, ("classification",)),
    "macro_f1": MetricSpec(_macro_f1, ("classification", "multilabel")),
    "balanced_accuracy": MetricSpec(_balanced_accuracy, ("classification",)),
    "matthews_correlation": MetricSpec(_matthews, ("classification",)),
    "pearson": MetricSpec(_correlation("pearsonr"), ("regression",)),
    "spearman": MetricSpec(_correlation("spearmanr"), ("regression",)),
    "mean_squared_error": MetricSpec(_mean_squared_error, ("regression",), higher_is_better=False),
    "micro_f1": MetricSpec(_micro_f1, ("multilabel",)),
    "subset_accuracy": MetricSpec(_subset_accuracy, ("multilabel",)),
    "entity_f1": MetricSpec(_entities(2), ("tagging",)),
    "entity_precision": MetricSpec(_entities(0), ("tagging",)),
    "entity_recall": MetricSpec(_entities(1), ("tagging",)),
}


def check_metrics(names: list[str], task_type: str, num_labels: int) -> None:
    """Checks that metrics are known and fit the task.

    Raises:
        RequestError: If one is unknown or does not fit.
    """
    for name in names:
        if name not in METRICS:
            raise unknown_choice("task.metrics", name, METRICS)
        if task_type not in METRICS[name].task_types:
            fitting = [other for other, spec in METRICS.items() if task_type in spec.task_types]
            raise RequestError(f"task.metrics: {name} does not fit task.type={task_type}; {', '.join(fitting)} do.")
        if name == "f1" and num_labels != 2:
            raise RequestError(f"task.metrics: f1 is for two classes, this task has {num_labels}: use macro_f1.")


def compute_metrics(names: list[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Scores predictions.

    Args:
        names: Keys of `METRICS`.
        predictions: Class indices, values, or names (of dtype object), shape (rows,).
        references: The labels, likewise.

    Returns:
        The value of each metric, by its name.
    """
    scores = {}
    for name in names:
        kind: Any = object
        if references.dtype != object:
            # Single precision would round means and correlations.
            kind = "float64" if "regression" in METRICS[name].task_types else "int64"
        scores[name] = METRICS[name].score(np.asarray(references, kind), np.asarray(predictions, kind))
    return scores
