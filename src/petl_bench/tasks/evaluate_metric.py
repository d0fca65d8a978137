"""The metrics of `petl_bench.tasks.metrics` as `evaluate.Metric`, for users of the evaluate library.

Runs call the metrics directly: they need no cache of predictions.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from petl_bench.records.predictions import names_by_row
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
        kinds = {"classification": datasets.Value("int64"), "regression": datasets.Value("float64")}
        kind = kinds.get(self._spec.task_types[0], datasets.List(datasets.Value("string")))
        return evaluate.MetricInfo(
            description=f"{self.config_name} as computed by scikit-learn, scipy or seqeval",
            citation="",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        in_names = self._spec.task_types[0] in ("multilabel", "tagging")
        columns = [names_by_row(one) if in_names else np.asarray(one) for one in (references, predictions)]
        return {self.config_name: self._spec.score(*columns)}
