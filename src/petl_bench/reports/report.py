"""Compares the runs below some folders: table to stdout, plot and page to files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import find_records
from petl_bench.reports.groups import Group, group_records
from petl_bench.reports.html import write_page
from petl_bench.reports.learning_curves import draw_learning_curves
from petl_bench.reports.low_resource import draw_low_resource
from petl_bench.reports.named import NamedGroup, find_studies, named_groups
from petl_bench.reports.page_data import page_data
from petl_bench.reports.picture import check_page, check_picture
from petl_bench.reports.plot import draw_scores
from petl_bench.reports.table import comparison_tables, to_csv, to_json, to_latex, to_markdown
from petl_bench.reports.terminal import print_table
from petl_bench.reports.variability_plot import draw_variability

_log = logging.getLogger(__name__)


def write_report(
    folders: list[str],
    form: str,
    plot: str | None,
    write: Callable[[str], None],
    *,
    plot_kind: str = "pareto",
    page: str | None = None,
) -> int:
    """Reports on every finished run below `folders`.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.
        plot_kind: What the picture shows, one of `PLOT_KINDS`.
        page: HTML page to write.

    Returns:
        The exit code: 0.

    Raises:
        RequestError: where there is no finished run, or nothing that the picture could show.
    """
    if plot:
        check_picture(Path(plot))
    if page:
        check_page(Path(page))
    records, unreadable = find_records(folders)
    for message in unreadable:
        _log.warning(message)
    groups = group_records(records)
    if not groups:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    _tell_unfinished(records)
    if form == "table":
        for table in comparison_tables(groups):
            print_table(table)
    else:
        write(_render(groups, form))
    if plot or page:
        _write_files(folders, records, plot, plot_kind, page)
    return 0


def _write_files(folders: list[str], records: list[Record], plot: str | None, plot_kind: str, page: str | None) -> None:
    studies = find_studies(folders)
    named = named_groups(records, studies)
    if not named:
        raise RequestError(f"No run of the study below {', '.join(folders)} is finished: run the study's command.")
    if plot:
        _draw(named, plot_kind, Path(plot))
        _log.info("plot: %s", Path(plot).resolve())
    if page:
        write_page(page_data(named, records, studies), Path(page))
        _log.info("page: %s", Path(page).resolve())


def _draw(named: list[NamedGroup], kind: str, file: Path) -> None:
    if kind == "low_resource":
        draw_low_resource(named, file)
        return
    draw = {"pareto": draw_scores, "curves": draw_learning_curves, "variability": draw_variability}[kind]
    draw([item.group for item in named], file)


def _render(groups: list[Group], form: str) -> str:
    if form == "csv":
        return to_csv(groups)
    if form == "json":
        return to_json(groups)
    render = {"md": to_markdown, "latex": to_latex}[form]
    return "\n\n".join(render(table) for table in comparison_tables(groups))


def _tell_unfinished(records: list[Record]) -> None:
    """Names the runs that ended otherwise: a comparison must not hide them."""
    for record in records:
        if record.status != "finished":
            config = record.config
            name = f"{config['task']['name']} {config['method']['name']} seed {config['train']['seed']}"
            _log.warning("left out, %s: %s (%s)", record.status, name, record.error)
