"""Groups records that differ in seed alone, and describes each group by mean and spread."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from petl_bench.records.names import backbone_name, method_label
from petl_bench.records.run_key import ADDED_LATER, WITHOUT_EFFECT
from petl_bench.records.schema import Record
from petl_bench.reports.statistics.summary import Statistic

# They act through settings of `train`, which are shown.
_ACT_ELSEWHERE = ("default_learning_rate", "default_head_learning_rate")
# Of the training settings: the seeds that a row is the mean of, and what changes no result.
_NO_DIFFERENCE = ("seed", *WITHOUT_EFFECT)


@dataclass(frozen=True)
class Group:
    """Records of one method (with its settings) on one task with one backbone, over seeds.

    Attributes:
        label: The method, and what tells it from its other variants in this report.
    """

    task: str
    backbone: str
    label: str
    records: list[Record]

    @property
    def first(self) -> Record:
        """One record, for what all share."""
        return self.records[0]

    @property
    def metric(self) -> str:
        """The primary metric."""
        assert self.first.protocol
        return self.first.protocol.metric

    @property
    def in_percent(self) -> bool:
        """Whether the primary metric is shown in percent: all but errors are."""
        assert self.first.protocol
        return self.first.protocol.higher_is_better

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(record.protocol.seed for record in self.records if record.protocol)

    def score(self, metric: str | None = None) -> Statistic | None:
        """A metric of the selected weights over the seeds; the primary one where none is named."""
        return Statistic.of(record.selected_scores.get(metric or self.metric) for record in self.records)

    def by_seed(self, metric: str | None = None) -> dict[int, float]:
        """A metric of the selected weights by seed; where a seed was run twice, the mean."""
        found: dict[int, list[float]] = {}
        for record in self.records:
            value = record.selected_scores.get(metric or self.metric)
            if value is not None and math.isfinite(value) and record.protocol:
                found.setdefault(record.protocol.seed, []).append(value)
        return {seed: fmean(values) for seed, values in found.items()}

    def metrics(self) -> list[str]:
        """All metrics of the report split, the primary one first."""
        assert self.first.scores
        return sorted(self.first.scores.best, key=lambda name: name != self.metric)

    def statistic(self, *path: str) -> Statistic | None:
        """A number of the record by its path, e.g. `time`, `train_seconds`, over the seeds."""
        return Statistic.of(_at(record, path) for record in self.records)


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups finished records; the same run found twice counts once.

    Groups come in the order task, backbone, trainable parameters.
    """
    unique = {record.run_key: record for record in records if is_comparable(record)}
    by_settings: dict[str, tuple[dict[str, str], list[Record]]] = {}
    for record in unique.values():
        settings = _shown_settings(record)
        by_settings.setdefault(json.dumps(settings, sort_keys=True), (settings, []))[1].append(record)
    variants: dict[tuple[str, str, str], list[tuple[dict[str, str], list[Record]]]] = {}
    for settings, same in by_settings.values():
        config = same[0].config
        place = config["task"]["name"], backbone_name(config["backbone"]), method_label(config["method"])
        variants.setdefault(place, []).append((settings, same))
    groups = []
    for (task, backbone, method), several in variants.items():
        differing = _differing([settings for settings, _ in several])
        for settings, same in several:
            label = " ".join([method, *(f"{key}={value}" for key, value in settings.items() if key in differing)])
            groups.append(Group(task, backbone, label, sorted(same, key=_seed)))
    assert len({(group.task, group.backbone, group.label) for group in groups}) == len(groups)
    return sorted(groups, key=lambda group: (group.task, group.backbone, _trained(group), group.label))


def is_comparable(record: Record) -> bool:
    """Whether a record has what a comparison needs."""
    return record.status == "finished" and None not in (record.protocol, record.params, record.scores)


def _differing(variants: list[dict[str, str]]) -> set[str]:
    """The settings in which the variants of a method differ, its PEFT type excepted, which its name has."""
    keys = set().union(*variants) - {"type"}
    return {key for key in keys if len({settings.get(key) for settings in variants}) > 1}


def _shown_settings(record: Record) -> dict[str, str]:
    """Everything by which runs are told apart, the seed excepted, by short names, as text."""
    config = record.config
    parts: dict[str, Any] = {key: value for key, value in config["method"].items() if key not in _ACT_ELSEWHERE}
    parts |= {f"layers.{key}": value for key, value in config["layers"].items()}
    parts |= {key: config["train"][key] for key in sorted(config["train"]) if key not in _NO_DIFFERENCE}
    for (*_, later), default in ADDED_LATER.items():
        # As in the records that do not know them.
        if parts.get(later, default) == default:
            parts.pop(later, None)
    parts |= {f"task.{key}": value for key, value in config["task"].items()}
    parts |= {f"backbone.{key}": value for key, value in config["backbone"].items()}
    parts["rows"] = record.data.rows_per_split if record.data else None
    parts["processes"] = record.hardware.get("num_processes", 1)
    return {key: json.dumps(value) if isinstance(value, list | dict) else str(value) for key, value in parts.items()}


def _seed(record: Record) -> int:
    return record.protocol.seed if record.protocol else 0


def _trained(group: Group) -> int:
    return group.first.params.trainable if group.first.params else 0


def _at(record: Record, path: tuple[str, ...]) -> float | None:
    node: Any = record
    for name in path:
        node = getattr(node, name, None)
    return node
