"""Groups records that differ only in their seed, and names each group."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from petl_bench.records.run_key import ADDED_LATER, WITHOUT_EFFECT, backbone_name, method_label
from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.fields import Field
from petl_bench.reports.machines import Machine, MeasuredCosts, by_machine, cost_statistic, newest_last
from petl_bench.reports.significance import Statistic

# These settings take effect through settings of `train`, which are shown.
_ACT_ELSEWHERE = ("default_learning_rate", "default_head_learning_rate")

# Training settings that do not distinguish runs: the seed, and those that change no result.
_NO_DIFFERENCE = ("seed", *WITHOUT_EFFECT)

# Config groups whose name prefixes the names of their settings.
_NAMED_GROUPS = ("task", "backbone")

# Digits of the hash of all rows, enough to distinguish the few data sets of a report.
_DIGITS_OF_DATA = 8


@dataclass(frozen=True)
class Group:
    """Records of one method (with its settings) on one task with one backbone, over seeds.

    Attributes:
        label: The method, with the settings in which its variants in this report differ.
        records: The newest record of each seed.
        replaced: Older records of these seeds: their scores do not count, but their costs do if another machine
            measured them.
    """

    task: str
    backbone: str
    label: str
    records: list[Record]
    replaced: tuple[Record, ...] = ()

    @property
    def first(self) -> Record:
        """The first record, for values that all records of the group share."""
        return self.records[0]

    @property
    def metric(self) -> str:
        """The primary metric."""
        assert self.first.protocol
        return self.first.protocol.metric

    @property
    def in_percent(self) -> bool:
        """Whether the primary metric is shown in percent; errors are not."""
        assert self.first.protocol
        return self.first.protocol.higher_is_better

    @property
    def trained(self) -> int:
        """The number of trained parameters, head included."""
        return self.first.params.trainable if self.first.params else 0

    @property
    def seeds(self) -> list[int]:
        """The seeds in ascending order."""
        return sorted(record.protocol.seed for record in self.records if record.protocol)

    def score(self, metric: str | None = None) -> Statistic | None:
        """Describes a metric of the selected weights over the seeds; by default the primary metric."""
        return Statistic.of(record.selected_scores.get(metric or self.metric) for record in self.records)

    def by_seed(self, metric: str | None = None) -> dict[int, float]:
        """A metric of the selected weights by seed."""
        scores = {_seed(record): record.selected_scores.get(metric or self.metric) for record in self.records}
        return {seed: score for seed, score in scores.items() if score is not None and math.isfinite(score)}

    def metrics(self) -> list[str]:
        """All metrics of the report split, the primary one first."""
        assert self.first.scores
        return sorted(self.first.scores.best, key=lambda name: name != self.metric)

    @cached_property
    def measured_costs(self) -> list[MeasuredCosts]:
        """The records grouped by machine and cache mode, so that their costs may be averaged."""
        return by_machine([*self.replaced, *self.records])

    def has(self, field: Field) -> bool:
        """Whether any run measured a number."""
        return any(field.value(record) is not None for record in (*self.records, *self.replaced))

    def statistic(self, field: Field, machine: Machine | None = None) -> Statistic | None:
        """Describes a number of the record over the seeds.

        Args:
            field: The number.
            machine: The machine, for numbers that depend on it. None stands for the only machine.

        Returns:
            None if no run measured it, or if several machines or cache modes did and none is named.
        """
        if field.depends_on_machine:
            return cost_statistic(field, self.measured_costs, machine)
        return Statistic.of(field.value(record) for record in self.records)


def group_records(records: Iterable[Record]) -> list[Group]:
    """Groups finished records. Each seed counts once, with the newest record of the same settings.

    Returns:
        The groups, sorted by task, backbone and number of trained parameters.
    """
    by_settings: dict[str, tuple[dict[str, str], list[Record]]] = {}
    for record in filter(is_comparable, records):
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
            groups.append(Group(task, backbone, label, *one_per_seed(same)))
    assert len({(group.task, group.backbone, group.label) for group in groups}) == len(groups)
    return sorted(groups, key=lambda group: (group.task, group.backbone, group.trained, group.label))


def one_per_seed(records: Iterable[Record]) -> tuple[list[Record], tuple[Record, ...]]:
    """Returns the newest record of each seed, in the order of the seeds, and the records that these replace."""
    ordered = newest_last(records)
    newest = {_seed(record): record for record in ordered}
    newest_ids = {id(record) for record in newest.values()}
    replaced = tuple(record for record in ordered if id(record) not in newest_ids)
    return [newest[seed] for seed in sorted(newest)], replaced


def is_comparable(record: Record) -> bool:
    """Whether a record belongs to a finished run and has all parts that a comparison needs."""
    return record.status == "finished" and None not in (record.protocol, record.params, record.scores)


def _differing(variants: list[dict[str, str]]) -> set[str]:
    """Names the settings in which the variants of a method differ, except for the PEFT type, which is in its name.

    The hash of the rows is included only if the other settings do not distinguish all variants.
    """
    keys = set().union(*variants) - {"type"}
    differing = {key for key in keys if len({settings.get(key) for settings in variants}) > 1}
    named = sorted(differing - {"data"})
    is_enough = len({tuple(settings.get(key) for key in named) for settings in variants}) == len(variants)
    return set(named) if is_enough else differing


def _shown_settings(record: Record) -> dict[str, str]:
    """Collects all settings that distinguish runs, except the seed, as text by short name."""
    config = record.config
    method = {key: value for key, value in config["method"].items() if key not in _ACT_ELSEWHERE}
    layers = {f"layers.{key}": value for key, value in config["layers"].items()}
    return _as_text(method | layers) | recorded_settings(record)


def recorded_settings(record: Record) -> dict[str, str]:
    """The settings of `_shown_settings` that belong neither to the method nor to its layers."""
    train = record.config.get("train") or {}
    parts: dict[str, Any] = {key: train[key] for key in sorted(train) if key not in _NO_DIFFERENCE}
    # Older records contain `auto` unresolved.
    parts["device"] = "cuda" if record.hardware.get("device") else "cpu"
    named = {group: record.config.get(group) or {} for group in _NAMED_GROUPS}
    parts |= {f"{group}.{key}": value for group, settings in named.items() for key, value in settings.items()}
    parts["rows"] = record.data.rows_per_split if record.data else None
    # Files with the same name may contain different rows.
    parts["data"] = record.data.fingerprint[:_DIGITS_OF_DATA] if record.data else None
    parts["processes"] = record.hardware.get("num_processes", 1)
    return _as_text(parts)


def _as_text(parts: dict[str, Any]) -> dict[str, str]:
    """Settings as text, without later additions whose value is the one that older records imply."""
    for (group, later), default in ADDED_LATER.items():
        key = f"{group}.{later}" if group in _NAMED_GROUPS else later
        if parts.get(key, default) == default:
            parts.pop(key, None)
    return {key: json.dumps(value) if isinstance(value, list | dict) else str(value) for key, value in parts.items()}


def _seed(record: Record) -> int:
    return record.protocol.seed if record.protocol else 0


@dataclass(frozen=True)
class NamedGroup:
    """A group and the name of its method in plots and on the page.

    Attributes:
        group: The group; its label is unique within its task and backbone.
        method: The method's name without the number of training rows; groups that differ only in it share a name.
    """

    group: Group
    method: str

    @property
    def rows(self) -> int:
        """The number of training rows."""
        assert self.group.first.protocol
        return self.group.first.protocol.num_train_examples

    @property
    def panel(self) -> tuple[str, str]:
        """Task and backbone. Scores are compared only within the same panel."""
        return self.group.task, self.group.backbone


def named_groups(records: Sequence[Record], studies: Sequence[StudyFile] = ()) -> list[NamedGroup]:
    """Groups finished records and names the groups; records of a study get the study's names."""
    planned = {run.key: run for study in studies for run in study.runs}
    names = _names_without_rows(records)
    named = [_named(group, names.get(group.first.run_key, group.label), planned) for group in group_records(records)]
    order = task_order(studies)
    return sorted(_distinct(named), key=lambda item: order.get(item.group.task, -1))


def task_order(studies: Sequence[StudyFile]) -> dict[str, int]:
    """Numbers the tasks in the order in which the studies name them."""
    return {task: number for number, task in enumerate(task for study in studies for task in study.tasks)}


def panel_groups(named: Sequence[NamedGroup]) -> list[Group]:
    """Makes a separate task of every number of training rows, so that only its groups are compared; largest first."""
    sizes: dict[tuple[str, str], set[int]] = {}
    for item in named:
        sizes.setdefault(item.panel, set()).add(item.rows)
    ordered = sorted(named, key=lambda item: sum(size > item.rows for size in sizes[item.panel]))
    return [
        replace(
            item.group,
            label=item.method,
            task=f"{item.group.task}, {item.rows:,} rows" if len(sizes[item.panel]) > 1 else item.group.task,
        )
        for item in ordered
    ]


def _names_without_rows(records: Sequence[Record]) -> dict[str, str]:
    """Labels without the number of training rows, by run key; empty if all records have the same number."""
    if len({record.protocol.num_train_examples for record in records if record.protocol}) < 2:
        return {}
    groups = group_records(map(_without_rows, records))
    return {record.run_key: group.label for group in groups for record in (*group.replaced, *group.records)}


def _without_rows(record: Record) -> Record:
    """Copies a record without the settings that say how many rows it was trained on."""
    task = {**record.config["task"], "num_train_examples": None, "rows_per_class": None}
    return replace(record, config={**record.config, "task": task}, data=None)


def _named(group: Group, method: str, planned: dict[str, PlannedRun]) -> NamedGroup:
    runs = [planned[record.run_key] for record in group.records if record.run_key in planned]
    names = {(run.method, run.task) for run in runs}
    if len(names) != 1:
        return NamedGroup(group, method)
    ((method, task),) = names
    return NamedGroup(replace(group, task=task), method)


def _distinct(named: list[NamedGroup]) -> list[NamedGroup]:
    alike = Counter((*item.panel, item.method, item.rows) for item in named)
    named = [
        replace(item, method=_distinct_name(item)) if alike[(*item.panel, item.method, item.rows)] > 1 else item
        for item in named
    ]
    sizes = Counter((*item.panel, item.method) for item in named)
    return [
        replace(item, group=replace(item.group, label=_label(item, several=sizes[(*item.panel, item.method)] > 1)))
        for item in named
    ]


def _distinct_name(item: NamedGroup) -> str:
    label = item.group.label
    return label if label.startswith(item.method) else f"{item.method} ({label})"


def _label(item: NamedGroup, *, several: bool) -> str:
    return f"{item.method}, {item.rows:,} rows" if several else item.method
