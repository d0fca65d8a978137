"""Groups records that differ in seed alone, and describes each group by mean and spread."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from petl_bench.records.names import backbone_name, method_label
from petl_bench.records.run_key import ADDED_LATER, WITHOUT_EFFECT
from petl_bench.records.schema import Record

# They act through settings of `train`, which are shown.
_ACT_ELSEWHERE = ("default_learning_rate", "default_head_learning_rate")
# Of the training settings: the seeds that a row is the mean of, and what changes no result.
_NO_DIFFERENCE = ("seed", *WITHOUT_EFFECT)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (n - 1) of `n` values; no deviation where n is 1."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Describes the values that are there; None where there are none."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


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
    unique = {record.run_key: record for record in records if _comparable(record)}
    by_settings: dict[str, list[Record]] = {}
    for record in unique.values():
        by_settings.setdefault(_settings_but_seed(record), []).append(record)
    groups = [
        Group(group[0].config["task"]["name"], backbone_name(group[0].config["backbone"]), "", sorted(group, key=_seed))
        for group in by_settings.values()
    ]
    labelled = [
        replace(group, label=_label(group, [other for other in groups if _siblings(group, other)])) for group in groups
    ]
    assert len({(group.task, group.backbone, group.label) for group in labelled}) == len(labelled)
    return sorted(labelled, key=lambda group: (group.task, group.backbone, _trained(group), group.label))


def _comparable(record: Record) -> bool:
    return record.status == "finished" and None not in (record.protocol, record.params, record.scores)


def _settings_but_seed(record: Record) -> str:
    return json.dumps(_shown_settings(record), sort_keys=True)


def _siblings(group: Group, other: Group) -> bool:
    return (group.task, group.backbone, _method(group)) == (other.task, other.backbone, _method(other))


def _method(group: Group) -> str:
    return method_label(group.first.config["method"])


def _label(group: Group, siblings: list[Group]) -> str:
    """The method's name, with the settings in which its variants differ."""
    method = group.first.config["method"]
    name = method_label(method)
    settings = _shown_settings(group.first)
    others = [_shown_settings(sibling.first) for sibling in siblings]
    differing = [key for key in settings if any(other.get(key) != settings[key] for other in others)]
    return " ".join([name, *(f"{key}={settings[key]}" for key in differing if key != "type")])


def _shown_settings(record: Record) -> dict[str, str]:
    """Everything by which runs are told apart, the seed excepted, by short names, as text."""
    config = record.config
    parts: dict[str, Any] = {key: value for key, value in config["method"].items() if key not in _ACT_ELSEWHERE}
    parts |= {f"layers.{key}": value for key, value in config["layers"].items()}
    parts |= {key: config["train"][key] for key in sorted(config["train"]) if key not in _NO_DIFFERENCE}
    for *_, later in ADDED_LATER:
        # Off, as in the records that do not know them.
        if not parts.get(later):
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
