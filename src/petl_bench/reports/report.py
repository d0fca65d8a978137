"""Compares the runs below some folders: table to stdout, plot and page to files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import find_records
from petl_bench.reports.files import write_files
from petl_bench.reports.groups import Group, group_records
from petl_bench.reports.picture import PLOT_KINDS, check_page, check_picture
from petl_bench.reports.table import comparison_tables, to_csv, to_json, to_latex, to_markdown
from petl_bench.reports.terminal import print_table

_log = logging.getLogger(__name__)


def write_report(
    folders: list[str],
    form: str,
    plot: str | None,
    write: Callable[[str], None],
    *,
    plot_kind: str | None = None,
    page: str | None = None,
) -> int:
    """Reports on every finished run below `folders`.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.
        plot_kind: What the picture shows, one of `PLOT_KINDS`; None: the first of them.
        page: HTML page to write.

    Returns:
        The exit code: 0.

    Raises:
        RequestError: where there is no finished run, or nothing that the picture could show.
    """
    if plot_kind and not plot:
        raise RequestError(f"--plot-kind {plot_kind} draws nothing by itself: add --plot FILE.")
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
        write_files(folders, plot, plot_kind or PLOT_KINDS[0], page)
    return 0


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
