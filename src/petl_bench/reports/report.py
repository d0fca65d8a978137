"""Compares the runs below some folders: table to stdout, plot to a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import find_records
from petl_bench.reports.groups import Group, group_records
from petl_bench.reports.plot import draw_scores
from petl_bench.reports.table import ReportTable, comparison_tables, to_csv, to_json, to_latex, to_markdown

_WIDEST = 1000

_log = logging.getLogger(__name__)


def write_report(folders: list[str], form: str, plot: str | None, write: Callable[[str], None]) -> int:
    """Reports on every finished run below `folders`.

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
    records, unreadable = find_records(folders)
    for message in unreadable:
        _log.warning(message)
    groups = group_records(records)
    if not groups:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    _tell_unfinished(records)
    if form == "table":
        for table in comparison_tables(groups):
            _print_terminal(table)
    else:
        write(_render(groups, form))
    if plot:
        draw_scores(groups, Path(plot))
        _log.info("plot: %s", Path(plot).resolve())
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


def _print_terminal(table: ReportTable) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=table.title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for number, name in enumerate(table.header):
        # A word a line: numbers are short, and a table that fits can be read.
        shown.add_column(name.replace(" ", "\n"), justify="left" if number == 0 else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    console = Console()
    # What is wider than the terminal is wrapped by it, rather than cut short.
    natural = console.measure(shown, options=console.options.update(width=_WIDEST)).maximum
    console.width = max(console.width, natural)
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False, soft_wrap=True)
