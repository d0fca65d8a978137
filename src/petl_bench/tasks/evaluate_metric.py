"""The metrics of `petl_bench.tasks.metrics` as `evaluate.Metric`, for users of the evaluate library.

Runs call the metrics directly: they need no cache of predictions.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from petl_bench.tasks.metrics import METRICS


class TaskMetric(evaluate.Metric):
    """A metric of `petl_bench.tasks.metrics`.

    Nothing is fetched from the hub and nothing is written to disk.

    Args:
        name: A key of `petl_bench.tasks.metrics.METRICS`.
    """

    def __init__(self, name: str) -> None:
        self._spec = METRICS[name]
        # In memory: the default is a cache file that parallel runs would share.
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = "int64" if self._spec.task_type == "classification" else "float64"
        return evaluate.MetricInfo(
            description=f"{self.config_name} as computed by scikit-learn or scipy",
            citation="",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {self.config_name: self._spec.score(np.asarray(references), np.asarray(predictions))}
