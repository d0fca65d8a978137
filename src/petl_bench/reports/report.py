"""Compares the runs below some folders: reads them, prints tables, and writes the plot and the page."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petl_bench.errors import RequestError
from petl_bench.records.predictions import Predictions
from petl_bench.records.schema import Record
from petl_bench.records.store import RunFolder, files_below, locate_records, write_json
from petl_bench.records.study_file import STUDY_FILE, StudyFile, read_study
from petl_bench.reports.classification import roc_curves
from petl_bench.reports.comparison_table import comparison_table
from petl_bench.reports.cost_columns import costs_by_machine, search_costs, search_table
from petl_bench.reports.csv_json import (
    find_method_comparison,
    method_comparison_tables,
    to_csv,
    to_json,
    to_method_comparison,
)
from petl_bench.reports.differences import find_differences
from petl_bench.reports.groups import NamedGroup, group_records, named_groups, panel_groups
from petl_bench.reports.page import PageInput, page_data, write_page
from petl_bench.reports.papers import paper_tables, study_json, study_tables
from petl_bench.reports.plots.kinds import draw_learning_curves, draw_low_resource, draw_scores, draw_variability
from petl_bench.reports.plots.tuning import TuningCurve, draw_tuning, tuning_curves
from petl_bench.reports.protocol import treatment_notes
from petl_bench.reports.ranking import Analysis, analyse
from petl_bench.reports.render import (
    PLOT_KINDS,
    ReportTable,
    check_page,
    check_picture,
    choose_columns,
    for_a_page,
    print_table,
    to_latex,
    to_markdown,
)
from petl_bench.reports.results_table import ResultsTable, backbone_results, reported_records, study_results
from petl_bench.reports.rows_report import all_task_rows
from petl_bench.reports.tables import baseline_notes, headline, ood_table, scores_table

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportInput:
    """The data of a report, as read from disk.

    Attributes:
        all_results: One results table per study, then one per backbone for the other runs.
        studies: Each study with its records.
        others: Records that belong to no study.
        found: All records by file, including those that the report leaves out.
        searches: Each study that has a search, with all records in its folder, trials included.
    """

    all_results: list[ResultsTable]
    studies: list[tuple[StudyFile, list[Record]]]
    others: list[Record]
    found: dict[Path, Record]
    searches: list[tuple[StudyFile, list[Record]]] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """The reported records, those of studies first."""
        return [record for _, own in self.studies for record in own] + self.others

    def read_predictions(self, record: Record, split: str = "report") -> Predictions | None:
        """Reads the predictions of a run; logs a warning and returns None if they cannot be read."""
        folder = self._folders[id(record)]
        try:
            return RunFolder(folder).read_predictions(record, split)
        except ValueError as error:
            _log.warning("%s", error)
            return None

    def roc_curves(self, record: Record) -> dict[str, NDArray[Any]]:
        """The ROC curves of a run's scores; empty without out-of-distribution rows or without stored predictions."""
        if record.ood is None:
            return {}
        known, other = self.read_predictions(record), self.read_predictions(record, "ood")
        return {} if known is None or other is None else roc_curves(known, other)

    @cached_property
    def _folders(self) -> dict[int, Path]:
        # Two records with the same run key may have different predictions.
        return {id(record): file.parent for file, record in self.found.items()}


def read_report_input(folders: list[str], *, may_be_empty: bool = False) -> ReportInput:
    """Reads every study and every record at or below these folders, and logs what is left out.

    Args:
        folders: Searched for records.
        may_be_empty: Whether an empty result is allowed, because there is something else to show.

    Returns:
        The studies and records, without unreadable records.

    Raises:
        RequestError: If there is neither a finished run nor a study.
    """
    located, unreadable = locate_records(folders)
    for message in unreadable:
        _log.warning(message)
    files = (file for folder in folders for file in files_below(Path(folder), STUDY_FILE))
    # A folder that is reachable by two paths counts once.
    paths = list({file.resolve(): file.parent for file in reversed(list(files))}.values())[::-1]
    by_study: dict[Path | None, list[Record]] = {path: [] for path in paths}
    for file, record in located.items():
        study_folder = next((parent for parent in file.parents if parent in paths), None)
        by_study.setdefault(study_folder, []).append(record)
    others = by_study.pop(None, [])
    read = [(study, by_study[path]) for path in paths if (study := read_study(path)) is not None]
    studies = [(study, _own(study, records)) for study, records in read]
    searches = [(study, records) for study, records in read if study.search is not None]
    groups = group_records(others)
    if not groups and not studies and not may_be_empty:
        raise RequestError(f"No finished run below {', '.join(folders)}: `petl-bench run` makes one.")
    all_results = [study_results(study, own) for study, own in studies] + backbone_results(groups)
    report_input = ReportInput(all_results, studies, others, located, searches)
    _warn_unfinished(report_input.records)
    return report_input


def _own(study: StudyFile, records: list[Record]) -> list[Record]:
    """Selects the records of a study from those in its folder, and logs how many are left out."""
    own = reported_records(study, records)
    if len(own) < len(records):
        _log.info(
            "%s: records left out because they are not the study's, or settings that were tried and not chosen: %d",
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
    columns: Sequence[str] = (),
    wide: bool = False,
    exported: str | None = None,
) -> None:
    """Reports on every finished run below `folders`; runs of a study have its names and order.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex`, `csv` or `json`.
        plot: Picture to draw.
        write: Takes the report's text.
        statistic: What a cell shows: `mean` (± sd) or `median` (with the range).
        reference: The method that all others are compared with; None compares every pair.
        plot_kind: What the picture shows, one of `PLOT_KINDS`; None stands for the first.
        page: HTML page to write.
        columns: The columns of the tables of scores; if empty, the most important ones.
        wide: Whether tables have all columns, even if there is no room for them.
        exported: Folder for the runs in the format of PEFT's method comparison.

    Raises:
        RequestError: If there is neither a finished run nor a study, or nothing that the picture could show.
    """
    if plot_kind and not plot:
        raise RequestError(f"--plot-kind {plot_kind} draws nothing by itself: add --plot FILE.")
    if form in ("csv", "json") and (columns or wide):
        raise RequestError(f"--format {form} always has all columns: leave out --columns and --wide.")
    if plot:
        check_picture(Path(plot))
    if page:
        check_page(Path(page))
    foreign = find_method_comparison(folders)
    report_input = read_report_input(folders, may_be_empty=bool(foreign) and form != "csv")
    differences = [find_differences(results, report_input.read_predictions) for results in report_input.all_results]
    analyses = analyse(differences, statistic, reference)
    if form == "csv":
        write(to_csv(analyses))
    elif form == "json":
        costs = [cost for study, records in report_input.searches for cost in search_costs(study, records)]
        further = ({"searches": costs} if costs else {}) | (
            {"method_comparison": [*foreign.values()]} if foreign else {}
        )
        write(to_json(analyses, study_json(report_input.studies) | further))
    else:
        of_searches = (search_table(study, records) for study, records in report_input.searches)
        tables = [table for table in of_searches if table is not None] + study_tables(report_input.studies)
        scores = [scores_table(analysis, statistic) for analysis in analyses]
        if columns:
            scores = choose_columns(scores, columns)
        tables += method_comparison_tables(foreign)
        _show([*scores, *_further_tables(analyses), *tables], form, write, wide=wide)
    if plot or page:
        write_files(report_input, analyses, plot, plot_kind or PLOT_KINDS[0], page)
    if exported is not None:
        _export_runs(report_input, Path(exported).expanduser())


def _export_runs(report_input: ReportInput, target: Path) -> None:
    """Writes each reported run in the format of PEFT's method comparison, with file names in its style."""
    reported = {id(record) for record in report_input.records}
    runs = [(file.parent, record) for file, record in report_input.found.items() if id(record) in reported]
    for folder, record in runs:
        content = to_method_comparison(record, folder)
        write_json(target / f"{content['run_info']['experiment_name'].replace('/', '--')}.json", content)
    _log.info("%d runs in the format of PEFT's method comparison: %s", len(runs), target.resolve())


def write_rows_report(folders: list[str], form: str, write: Callable[[str], None], *, wide: bool = False) -> None:
    """Reports on the predictions of every finished classification run below `folders`.

    Args:
        folders: Searched for records.
        form: `table` (for a terminal), `md`, `latex` or `json`.
        write: Takes the report's text.
        wide: Whether tables have all columns, even if there is no room for them.

    Raises:
        RequestError: If no run has kept predictions of classes, or for `csv`.
    """
    if form == "csv":
        raise RequestError("--rows has several tables, which are not one CSV file: use --format json.")
    report_input = read_report_input(folders)
    all_rows = all_task_rows(report_input.all_results, report_input.read_predictions)
    if not all_rows:
        raise RequestError(
            f"No classification run below {', '.join(folders)} has kept predictions: a run made again with force=true "
            "and measure.predictions=true keeps them."
        )
    if form == "json":
        write(json.dumps([rows.to_dict() for rows in all_rows], indent=2, allow_nan=False))
    else:
        _show([table for rows in all_rows for table in rows.tables()], form, write, wide=wide)


def write_paper_report(folders: list[str], form: str, write: Callable[[str], None], *, wide: bool = False) -> None:
    """Shows the published tables of studies in their own layout, with our scores in their cells.

    Args:
        folders: Searched for studies.
        form: `table` (for a terminal), `md` or `latex`; the latter two have all columns.
        write: Takes the report's text.
        wide: Whether a terminal's tables have all columns, even if there is no room for them.

    Raises:
        RequestError: If no study names published rows, or for `csv` and `json`.
    """
    if form in ("csv", "json"):
        raise RequestError("--layout paper is for readers: use --format table, md or latex; json has published rows.")
    report_input = read_report_input(folders)
    tables = [table for study, records in report_input.studies for table in paper_tables(study, records)]
    if not tables:
        raise RequestError(
            f"No study below {', '.join(folders)} names published rows: `published` in its file holds a paper's table."
        )
    _show(tables, form, write, wide=wide or form != "table")


def _further_tables(analyses: list[Analysis]) -> list[ReportTable]:
    all_results = [analysis.results for analysis in analyses]
    tables = [table for results in all_results if (table := ood_table(results)) is not None]
    tables += [table for results in all_results if (table := costs_by_machine(results)) is not None]
    return tables + [table for analysis in analyses if (table := comparison_table(analysis)) is not None]


def _show(tables: list[ReportTable], form: str, write: Callable[[str], None], *, wide: bool = False) -> None:
    if wide:
        tables = [replace(table, whole=True) for table in tables]
    if form == "table":
        for table in tables:
            print_table(table)
        return
    render = {"md": to_markdown, "latex": to_latex}[form]
    write("\n\n".join(render(for_a_page(table)) for table in tables))


def write_files(
    report_input: ReportInput, analyses: list[Analysis], plot: str | None, plot_kind: str, page: str | None
) -> None:
    """Writes the requested picture and page.

    Args:
        report_input: The studies and records.
        analyses: The analysed results tables.
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
    headlines = [text for analysis in analyses if (text := headline(analysis.results)) is not None]
    if plot:
        if plot_kind == "tuning":
            for sentence in draw_tuning(report_input.searches, Path(plot)):
                _log.info("%s", sentence)
        else:
            _draw(named, plot_kind, Path(plot), headlines[0] if len(headlines) == 1 else None)
        _log.info("plot: %s", Path(plot).resolve())
    if page:
        write_page(page_data(_page_input(report_input, analyses, named, headlines)), Path(page))
        _log.info("page: %s", Path(page).resolve())


def _page_input(
    report_input: ReportInput, analyses: list[Analysis], named: list[NamedGroup], headlines: list[str]
) -> PageInput:
    all_results, compared = report_input.all_results, study_json(report_input.studies)
    all_rows = all_task_rows(all_results, report_input.read_predictions)
    return PageInput(
        named=named,
        records=list(report_input.found.values()),
        studies=[study for study, _ in report_input.studies],
        headlines=headlines,
        notes=[note for results in all_results for note in (*treatment_notes(results), *baseline_notes(results))],
        missing=[text for results in all_results for text in results.missing()],
        published=compared["published"],
        claims=compared["claims"],
        comparisons=[table for analysis in analyses if (table := comparison_table(analysis)) is not None],
        classes=[table for rows in all_rows for table in rows.tables()],
        bold={key for analysis in analyses for key in analysis.bold_runs()},
        incomplete={key for results in all_results for key in results.incomplete_runs()},
        pairs=[pair for analysis in analyses for pair in analysis.tested_pairs()],
        roc={record.run_key: curves for record in report_input.records if (curves := report_input.roc_curves(record))},
        tuning=_tuning(report_input),
    )


def _tuning(report_input: ReportInput) -> list[TuningCurve]:
    try:
        return tuning_curves(report_input.searches)
    except RequestError as error:
        _log.warning("the page has no tuning curves: %s", error)
        return []


def _draw(named: list[NamedGroup], kind: str, file: Path, sentence: str | None) -> None:
    if kind == "low_resource":
        draw_low_resource(named, file)
        return
    if kind == "pareto":
        draw_scores(panel_groups(named), file, sentence)
        return
    draw = {"curves": draw_learning_curves, "variability": draw_variability}[kind]
    draw(panel_groups(named), file)
