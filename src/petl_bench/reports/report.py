"""Compares the runs below some folders: table to stdout, plot and page to files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.reports.file_formats import PLOT_KINDS, check_page, check_picture
from petl_bench.reports.files import write_files
from petl_bench.reports.material import read_material
from petl_bench.reports.papers.held_against import study_json, study_tables
from petl_bench.reports.statistics.comparisons import Comparison, compare
from petl_bench.reports.statistics.sheets import Sheet
from petl_bench.reports.statistics.standing import Standing, standing
from petl_bench.reports.tables.comparison_table import comparison_table
from petl_bench.reports.tables.export import to_csv, to_json
from petl_bench.reports.tables.markup import to_latex, to_markdown
from petl_bench.reports.tables.sheet_table import sheet_table
from petl_bench.reports.tables.table import ReportTable
from petl_bench.reports.tables.terminal import print_table


def write_report(
    folders: list[str],
    form: str,
    plot: str | None,
    write: Callable[[str], None],
    *,
    statistic: str = "mean",
    reference: str | None = None,
    plot_kind: str | None = None,
    page: str | None = None,
) -> int:
    """Reports on every finished run below `folders`; on a folder with a study, as the study has it.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.
        statistic: What a cell shows: `mean` (± sd) or `median` (with the range).
        reference: The method that all others are compared with; None: the best average.
        plot_kind: What the picture shows, one of `PLOT_KINDS`; None: the first of them.
        page: HTML page to write.

    Returns:
        The exit code: 0.

    Raises:
        RequestError: where there is no finished run and no study, or nothing that the picture could show.
    """
    if plot_kind and not plot:
        raise RequestError(f"--plot-kind {plot_kind} draws nothing by itself: add --plot FILE.")
    if plot:
        check_picture(Path(plot))
    if page:
        check_page(Path(page))
    material = read_material(folders)
    standings = [(sheet, standing(sheet, statistic)) for sheet in material.sheets]
    comparisons = compare(material.sheets, reference)
    if form == "csv":
        write(to_csv(standings))
    elif form == "json":
        write(to_json(standings, comparisons, study_json(material.studies)))
    else:
        tables = _tables(standings, comparisons, statistic) + study_tables(material.studies)
        _show(tables, form, write)
    if plot or page:
        write_files(material, plot, plot_kind or PLOT_KINDS[0], page)
    return 0


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
