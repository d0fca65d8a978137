"""Compares the runs below some folders: table to stdout, plot to a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import find_records
from petl_bench.records.study_file import StudyFile
from petl_bench.reports.groups import Group, group_records
from petl_bench.reports.held_against import find_studies, study_json, study_tables
from petl_bench.reports.picture import check_picture
from petl_bench.reports.plot import draw_scores
from petl_bench.reports.table import comparison_tables, long_rows, to_csv, to_json, to_latex, to_markdown
from petl_bench.reports.terminal import print_table

_log = logging.getLogger(__name__)


def write_report(folders: list[str], form: str, plot: str | None, write: Callable[[str], None]) -> int:
    """Reports on every finished run below `folders`, and on what their studies are held against.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.

    Returns:
        The exit code: 0.

    Raises:
        RequestError: where there is no finished run.
    """
    if plot:
        check_picture(Path(plot))
    records, unreadable = find_records(folders)
    for message in unreadable:
        _log.warning(message)
    groups = group_records(records)
    if not groups:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    _tell_unfinished(records)
    studies = find_studies(folders)
    if form == "table":
        for table in [*comparison_tables(groups), *study_tables(studies, records)]:
            print_table(table)
    else:
        write(_render(groups, form, studies, records))
    if plot:
        draw_scores(groups, Path(plot))
        _log.info("plot: %s", Path(plot).resolve())
    return 0


def _render(groups: list[Group], form: str, studies: list[StudyFile], records: list[Record]) -> str:
    if form == "csv":
        return to_csv(groups)
    if form == "json" and studies:
        return json.dumps({"rows": long_rows(groups)} | study_json(studies, records), indent=2)
    if form == "json":
        return to_json(groups)
    render = {"md": to_markdown, "latex": to_latex}[form]
    return "\n\n".join(render(table) for table in [*comparison_tables(groups), *study_tables(studies, records)])


def _tell_unfinished(records: list[Record]) -> None:
    """Names the runs that ended otherwise: a comparison must not hide them."""
    for record in records:
        if record.status != "finished":
            config = record.config
            name = f"{config['task']['name']} {config['method']['name']} seed {config['train']['seed']}"
            _log.warning("left out, %s: %s (%s)", record.status, name, record.error)
