"""What some folders hold for a report: studies with their records, and other runs."""

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
    """What a report is made from.

    Attributes:
        sheets: One a study, then one a backbone for the other runs.
        studies: Each study with its records.
        others: Records of no study.
        found: All records, those among them that are left out.
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
    """Reads every study and every record at or below these folders; tells what is left out.

    Raises:
        RequestError: where there is no finished run and no study.
    """
    located, unreadable = locate_records(folders)
    for message in unreadable:
        _log.warning(message)
    files = (file for folder in folders for file in files_below(Path(folder), STUDY_FILE))
    # The same folder by two names is one.
    paths = list({file.resolve(): file.parent for file in reversed(list(files))}.values())[::-1]
    by_study: dict[Path | None, list[Record]] = {path: [] for path in paths}
    for file, record in located.items():
        home = next((parent for parent in file.parents if parent in paths), None)
        by_study.setdefault(home, []).append(record)
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
    """The study's records among those in its folder."""
    own = reported_records(study, records)
    if len(own) < len(records):
        _log.info(
            "%s: records left out that are not the study's, or of learning rates not taken: %d",
            *(study.name, len(records) - len(own)),
        )
    return own


def _warn_unfinished(records: list[Record]) -> None:
    """Names the runs that ended otherwise: a comparison must not hide them."""
    for record in records:
        if record.status != "finished":
            task, method, train = (record.config.get(part) or {} for part in ("task", "method", "train"))
            name = f"{task.get('name')} {method.get('name')} seed {train.get('seed')}"
            _log.warning("left out, %s: %s (%s)", record.status, name, record.error)
