"""The files that a report writes beside its tables: a picture, a page."""

from __future__ import annotations

import logging
from pathlib import Path

from petl_bench.reports.material import Material
from petl_bench.reports.page.data import page_data
from petl_bench.reports.page.html import write_page
from petl_bench.reports.papers.held_against import study_json
from petl_bench.reports.plots.learning_curves import draw_learning_curves
from petl_bench.reports.plots.low_resource import draw_low_resource
from petl_bench.reports.plots.scores_by_cost import draw_scores
from petl_bench.reports.plots.variability import draw_variability
from petl_bench.reports.statistics.named_groups import NamedGroup, named_groups, panel_groups

_log = logging.getLogger(__name__)


def write_files(material: Material, plot: str | None, plot_kind: str, page: str | None) -> None:
    """Writes the picture and the page that were asked for; runs of a study go by its names.

    Args:
        material: What was found.
        plot: Picture to draw.
        plot_kind: What the picture shows, one of `PLOT_KINDS`.
        page: HTML page to write.

    Raises:
        RequestError: where no run has what the picture shows.
    """
    studies = [study for study, _ in material.studies]
    named = named_groups(material.records, studies)
    if not named:
        _log.warning("no plot and no page: no run of the study has finished")
        return
    if plot:
        _draw(named, plot_kind, Path(plot))
        _log.info("plot: %s", Path(plot).resolve())
    if page:
        held = study_json(material.studies)
        data = page_data(named, material.found, studies, held["published"], held["claims"])
        data["missing"] = [words for sheet in material.sheets for words in sheet.missing()]
        write_page(data, Path(page))
        _log.info("page: %s", Path(page).resolve())


def _draw(named: list[NamedGroup], kind: str, file: Path) -> None:
    if kind == "low_resource":
        draw_low_resource(named, file)
        return
    draw = {"pareto": draw_scores, "curves": draw_learning_curves, "variability": draw_variability}[kind]
    draw(panel_groups(named), file)
