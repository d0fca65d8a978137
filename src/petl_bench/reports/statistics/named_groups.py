"""Names for groups: a study's own where it has one, and one name along the numbers of training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.statistics.groups import Group, group_records


@dataclass(frozen=True)
class NamedGroup:
    """A group and its method's name.

    Attributes:
        group: Its label tells it from all others of its task and backbone.
        method: Its name without the number of training rows, so that groups which differ in it alone share one.
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
        """Task and backbone: scores are compared within one of these only."""
        return self.group.task, self.group.backbone


def named_groups(records: Sequence[Record], studies: Sequence[StudyFile] = ()) -> list[NamedGroup]:
    """Groups finished records and names them, those of a study as it does."""
    planned = {run.key: run for study in studies for run in study.runs}
    names = _names_without_rows(records)
    named = [_named(group, names.get(group.first.run_key, group.label), planned) for group in group_records(records)]
    order = task_order(studies)
    return sorted(_distinct(named), key=lambda item: order.get(item.group.task, -1))


def task_order(studies: Sequence[StudyFile]) -> dict[str, int]:
    """The place of each task that a study names."""
    return {task: number for number, task in enumerate(task for study in studies for task in study.tasks)}


def panel_groups(named: Sequence[NamedGroup]) -> list[Group]:
    """Groups to be compared within their task: each number of training rows is one of its own, the largest first."""
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
    """Labels by run key where the records differ in the number of training rows."""
    if len({record.protocol.num_train_examples for record in records if record.protocol}) < 2:
        return {}
    groups = group_records(map(_without_rows, records))
    return {record.run_key: group.label for group in groups for record in group.records}


def _without_rows(record: Record) -> Record:
    """The record as if all had been trained on the same rows."""
    task = {**record.config["task"], "num_train_examples": None}
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
        replace(item, method=_told_apart(item)) if alike[(*item.panel, item.method, item.rows)] > 1 else item
        for item in named
    ]
    sizes = Counter((*item.panel, item.method) for item in named)
    return [
        replace(item, group=replace(item.group, label=_label(item, several=sizes[(*item.panel, item.method)] > 1)))
        for item in named
    ]


def _told_apart(item: NamedGroup) -> str:
    label = item.group.label
    return label if label.startswith(item.method) else f"{item.method} ({label})"


def _label(item: NamedGroup, *, several: bool) -> str:
    return f"{item.method}, {item.rows:,} rows" if several else item.method
