"""Compares the runs below some folders: table to stdout, plot to a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import find_records
from petl_bench.records.study_file import read_study
from petl_bench.reports.comparisons import Comparison, compare
from petl_bench.reports.export import to_csv, to_json
from petl_bench.reports.groups import group_records
from petl_bench.reports.markup import to_latex, to_markdown
from petl_bench.reports.picture import check_picture
from petl_bench.reports.plot import draw_scores
from petl_bench.reports.sheets import Sheet, backbone_sheets, reported_records, study_sheet
from petl_bench.reports.standing import Standing, standing
from petl_bench.reports.table import ReportTable, comparison_table, sheet_table
from petl_bench.reports.terminal import print_table

_log = logging.getLogger(__name__)


def write_report(
    folders: list[str],
    form: str,
    plot: str | None,
    write: Callable[[str], None],
    *,
    statistic: str = "mean",
    reference: str | None = None,
) -> int:
    """Reports on every finished run below `folders`; on a folder with a study, as the study has it.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.
        statistic: What a cell shows: `mean` (± sd) or `median` (with the range).
        reference: The method that all others are compared with; None: the best average.

    Returns:
        The exit code: 0.

    Raises:
        RequestError: where there is no finished run and no study.
    """
    if plot:
        check_picture(Path(plot))
    sheets = read_sheets(folders)
    standings = [(sheet, standing(sheet, statistic)) for sheet in sheets]
    comparisons = compare(sheets, reference)
    if form == "csv":
        write(to_csv(standings))
    elif form == "json":
        write(to_json(standings, comparisons))
    else:
        _show(_tables(standings, comparisons, statistic), form, write)
    if plot:
        _draw(sheets, Path(plot))
    return 0


def read_sheets(folders: list[str]) -> list[Sheet]:
    """What the folders hold, each study by itself, and the other runs by backbone.

    Raises:
        RequestError: where there is no finished run and no study.
    """
    sheets, others = [], []
    for folder in folders:
        records, unreadable = find_records([folder])
        for message in unreadable:
            _log.warning(message)
        study = read_study(Path(folder))
        if study is None:
            others += records
            continue
        own = reported_records(study, records)
        if len(own) < len(records):
            _log.info(
                "%s: records left out that are not the study's, or of learning rates not taken: %d",
                study.name,
                len(records) - len(own),
            )
        _tell_unfinished(own)
        sheets.append(study_sheet(study, own))
    groups = group_records(others)
    if not groups and not sheets:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    _tell_unfinished(others)
    return sheets + backbone_sheets(groups)


def _tables(
    standings: list[tuple[Sheet, Standing]], comparisons: list[Comparison], statistic: str
) -> list[ReportTable]:
    tables = [sheet_table(sheet, stand, statistic) for sheet, stand in standings]
    return tables + [comparison_table(list(same)) for _, same in groupby(comparisons, key=lambda one: one.sheet)]


def _show(tables: list[ReportTable], form: str, write: Callable[[str], None]) -> None:
    if form == "table":
        for table in tables:
            print_table(table)
        return
    render = {"md": to_markdown, "latex": to_latex}[form]
    write("\n\n".join(render(table) for table in tables))


def _draw(sheets: list[Sheet], file: Path) -> None:
    groups = [group for sheet in sheets for group in sheet.groups()]
    if not groups:
        _log.warning("no plot: no run has finished")
        return
    draw_scores(groups, file)
    _log.info("plot: %s", file.resolve())


def _tell_unfinished(records: list[Record]) -> None:
    """Names the runs that ended otherwise: a comparison must not hide them."""
    for record in records:
        if record.status != "finished":
            config = record.config
            name = f"{config['task']['name']} {config['method']['name']} seed {config['train']['seed']}"
            _log.warning("left out, %s: %s (%s)", record.status, name, record.error)
