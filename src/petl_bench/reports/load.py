"""Reads the input of a report: the studies and records below some folders."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import files_below, locate_records
from petl_bench.records.study_file import STUDY_FILE, StudyFile, read_study
from petl_bench.reports.groups import group_records
from petl_bench.reports.results_table import ResultsTable, backbone_results, reported_records, study_results

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from, as read from disk.

    Attributes:
        all_results: One results table per study, then one per backbone for the other runs.
        studies: Each study with its records.
        others: Records that belong to no study.
        found: All records, including those that the report leaves out.
    """

    all_results: list[ResultsTable]
    studies: list[tuple[StudyFile, list[Record]]]
    others: list[Record]
    found: list[Record]

    @property
    def records(self) -> list[Record]:
        """The records that are reported, those of studies first."""
        return [record for _, own in self.studies for record in own] + self.others


def read_report_input(folders: list[str]) -> ReportInput:
    """Reads every study and every record at or below these folders, and logs what is left out.

    Raises:
        RequestError: If there is neither a finished run nor a study.
    """
    located, unreadable = locate_records(folders)
    for message in unreadable:
        _log.warning(message)
    files = (file for folder in folders for file in files_below(Path(folder), STUDY_FILE))
    # A folder that is reached by two paths counts once.
    paths = list({file.resolve(): file.parent for file in reversed(list(files))}.values())[::-1]
    by_study: dict[Path | None, list[Record]] = {path: [] for path in paths}
    for file, record in located.items():
        study_folder = next((parent for parent in file.parents if parent in paths), None)
        by_study.setdefault(study_folder, []).append(record)
    others = by_study.pop(None, [])
    studies = [(study, _own(study, by_study[path])) for path in paths if (study := read_study(path)) is not None]
    groups = group_records(others)
    if not groups and not studies:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    all_results = [study_results(study, own) for study, own in studies] + backbone_results(groups)
    report_input = ReportInput(all_results, studies, others, list(located.values()))
    _warn_unfinished(report_input.records)
    return report_input


def _own(study: StudyFile, records: list[Record]) -> list[Record]:
    """Selects the records of a study from those in its folder, and logs how many are left out."""
    own = reported_records(study, records)
    if len(own) < len(records):
        _log.info(
            "%s: records left out because they are not the study's or their learning rate was not chosen: %d",
            *(study.name, len(records) - len(own)),
        )
    return own


def _warn_unfinished(records: list[Record]) -> None:
    """Warns of every run that did not finish, because a comparison must not hide it."""
    for record in records:
        if record.status != "finished":
            task, method, train = (record.config.get(part) or {} for part in ("task", "method", "train"))
            name = f"{task.get('name')} {method.get('name')} seed {train.get('seed')}"
            _log.warning("left out, %s: %s (%s)", record.status, name, record.error)
