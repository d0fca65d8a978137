"""`petl-bench report`: compares the runs below some folders in tables, a plot and an HTML page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from petl_bench.errors import RequestError
from petl_bench.reports.export import to_csv, to_json
from petl_bench.reports.groups import NamedGroup, named_groups, panel_groups
from petl_bench.reports.load import ReportInput, read_report_input
from petl_bench.reports.page.data import page_data
from petl_bench.reports.page.html import write_page
from petl_bench.reports.papers import study_json, study_tables
from petl_bench.reports.plots.costs import draw_scores
from petl_bench.reports.plots.curves import draw_learning_curves, draw_low_resource, draw_variability
from petl_bench.reports.ranking import Comparison, Ranking, compare, rank_methods
from petl_bench.reports.render import (
    PLOT_KINDS,
    ReportTable,
    check_page,
    check_picture,
    print_table,
    to_latex,
    to_markdown,
)
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.tables import comparison_table, scores_table


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
    """Reports on every finished run below `folders`; runs of a study go by its names and order.

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
        RequestError: If there is neither a finished run nor a study, or nothing that the picture could show.
    """
    if plot_kind and not plot:
        raise RequestError(f"--plot-kind {plot_kind} draws nothing by itself: add --plot FILE.")
    if plot:
        check_picture(Path(plot))
    if page:
        check_page(Path(page))
    report_input = read_report_input(folders)
    rankings = [(results, rank_methods(results, statistic)) for results in report_input.all_results]
    comparisons = compare(report_input.all_results, reference)
    if form == "csv":
        write(to_csv(rankings))
    elif form == "json":
        write(to_json(rankings, comparisons, study_json(report_input.studies)))
    else:
        tables = _tables(rankings, comparisons, statistic) + study_tables(report_input.studies)
        _show(tables, form, write)
    if plot or page:
        write_files(report_input, plot, plot_kind or PLOT_KINDS[0], page)
    return 0


def _tables(
    rankings: list[tuple[ResultsTable, Ranking]], comparisons: list[Comparison], statistic: str
) -> list[ReportTable]:
    tables = [scores_table(results, ranking, statistic) for results, ranking in rankings]
    return tables + [comparison_table(list(same)) for _, same in groupby(comparisons, key=lambda one: one.results)]


def _show(tables: list[ReportTable], form: str, write: Callable[[str], None]) -> None:
    if form == "table":
        for table in tables:
            print_table(table)
        return
    render = {"md": to_markdown, "latex": to_latex}[form]
    write("\n\n".join(render(table) for table in tables))


_log = logging.getLogger(__name__)


def write_files(report_input: ReportInput, plot: str | None, plot_kind: str, page: str | None) -> None:
    """Writes the requested picture and page.

    Args:
        report_input: The studies and records.
        plot: Picture to draw.
        plot_kind: What the picture shows, one of `PLOT_KINDS`.
        page: HTML page to write.

    Raises:
        RequestError: If no run has what the picture shows.
    """
    studies = [study for study, _ in report_input.studies]
    named = named_groups(report_input.records, studies)
    if not named:
        _log.warning("no plot and no page: no run of the study has finished")
        return
    if plot:
        _draw(named, plot_kind, Path(plot))
        _log.info("plot: %s", Path(plot).resolve())
    if page:
        compared = study_json(report_input.studies)
        data = page_data(named, report_input.found, studies, compared["published"], compared["claims"])
        data["missing"] = [text for results in report_input.all_results for text in results.missing()]
        write_page(data, Path(page))
        _log.info("page: %s", Path(page).resolve())


def _draw(named: list[NamedGroup], kind: str, file: Path) -> None:
    if kind == "low_resource":
        draw_low_resource(named, file)
        return
    draw = {"pareto": draw_scores, "curves": draw_learning_curves, "variability": draw_variability}[kind]
    draw(panel_groups(named), file)
