"""Groups records that differ in seed alone, and describes each group by mean and spread."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from petl_bench.records.schema import Record

# Settings by which no two rows of a table are told apart.
_NOT_SHOWN = ("name", "default_learning_rate", "default_head_learning_rate")
_LOCATIONS = ("runs_dir", "force", "tracker", "data_root")


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
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(record.protocol.seed for record in self.records if record.protocol)

    def score(self, metric: str | None = None) -> Statistic | None:
        """A metric of the selected weights over the seeds; the primary one where none is named."""
        return Statistic.of(_score(record, metric or self.metric) for record in self.records)

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
    unique = {record.run_key: record for record in records if record.status == "finished"}
    by_settings: dict[str, list[Record]] = {}
    for record in unique.values():
        by_settings.setdefault(_settings_but_seed(record), []).append(record)
    groups = [
        Group(group[0].config["task"]["name"], backbone_name(group[0]), "", sorted(group, key=_seed))
        for group in by_settings.values()
    ]
    labelled = [
        Group(
            group.task,
            group.backbone,
            _label(group, [other for other in groups if _siblings(group, other)]),
            group.records,
        )
        for group in groups
    ]
    return sorted(labelled, key=lambda group: (group.task, group.backbone, _trained(group), group.label))


def backbone_name(record: Record) -> str:
    """The backbone's name, or its folder's where it came from one."""
    backbone = record.config["backbone"]
    return str(backbone["path"]).rstrip("/").rpartition("/")[2] if backbone.get("path") else str(backbone["name"])


def _settings_but_seed(record: Record) -> str:
    config = {name: value for name, value in record.config.items() if name not in _LOCATIONS}
    config["train"] = {name: value for name, value in config["train"].items() if name != "seed"}
    rows = record.data.rows_per_split if record.data else None
    return json.dumps([config, rows], sort_keys=True)


def _siblings(group: Group, other: Group) -> bool:
    return (group.task, group.backbone, _method(group)) == (other.task, other.backbone, _method(other))


def _method(group: Group) -> str:
    return str(group.first.config["method"]["name"])


def _label(group: Group, siblings: list[Group]) -> str:
    """The method's name, with the settings in which its variants differ."""
    method = group.first.config["method"]
    name = f"{method['name']}:{method['type'].lower()}" if "type" in method else str(method["name"])
    settings = _shown_settings(group)
    others = [_shown_settings(sibling) for sibling in siblings]
    differing = [key for key in settings if any(other.get(key) != settings[key] for other in others)]
    return " ".join([name, *(f"{key}={settings[key]}" for key in differing if key != "type")])


def _shown_settings(group: Group) -> dict[str, str]:
    """Settings of a run by short names, as text."""
    config = group.first.config
    parts: dict[str, Any] = {key: value for key, value in config["method"].items() if key not in _NOT_SHOWN}
    parts |= {f"layers.{key}": value for key, value in config["layers"].items()}
    parts |= {key: config["train"][key] for key in sorted(config["train"]) if key != "seed"}
    parts |= {f"task.{key}": value for key, value in config["task"].items() if key not in ("name", "labels")}
    return {key: json.dumps(value) if isinstance(value, list | dict) else str(value) for key, value in parts.items()}


def _seed(record: Record) -> int:
    return record.protocol.seed if record.protocol else 0


def _trained(group: Group) -> int:
    return group.first.params.trainable if group.first.params else 0


def _score(record: Record, metric: str) -> float | None:
    if record.scores is None or record.protocol is None:
        return None
    return (record.scores.best if record.protocol.selection == "best" else record.scores.last).get(metric)


def _at(record: Record, path: tuple[str, ...]) -> float | None:
    node: Any = record
    for name in path:
        node = getattr(node, name, None)
    return node
