"""Names for groups: a study's own where it has one, and one name along the numbers of training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from petl_bench.records.schema import Record
from petl_bench.records.study_file import STUDY_FILE, PlannedRun, StudyFile, read_study
from petl_bench.reports.groups import Group, group_records


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


def find_studies(folders: Iterable[str | Path]) -> list[StudyFile]:
    """The studies whose files lie in or below these folders.

    Raises:
        RequestError: where one cannot be read.
    """
    files = [file for folder in map(Path, folders) for file in sorted(folder.rglob(STUDY_FILE))]
    studies = [read_study(file.parent) for file in dict.fromkeys(file.resolve() for file in files)]
    return [study for study in studies if study is not None]


def named_groups(records: Sequence[Record], studies: Sequence[StudyFile] = ()) -> list[NamedGroup]:
    """Groups finished records and names them; runs that a study tried and did not take are left out."""
    planned = {run.key: run for study in studies for run in study.runs}
    kept = [record for record in records if not _turned_down(planned.get(record.run_key))]
    names = {
        record.run_key: group.label for group in group_records(map(_without_rows, kept)) for record in group.records
    }
    named = [_named(group, names[group.first.run_key], planned) for group in group_records(kept)]
    return _distinct(named)


def _turned_down(run: PlannedRun | None) -> bool:
    return run is not None and run.chosen is False


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
