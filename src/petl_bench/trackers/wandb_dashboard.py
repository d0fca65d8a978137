"""The dashboard as Weights & Biases keeps it: panels, the workspace, the report."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from petl_bench.trackers import SCORE
from petl_bench.trackers.dashboard import (
    ESTIMATED_PEAK,
    METHOD,
    SECTIONS,
    STEP,
    TRAINABLE,
    PanelPlan,
    Place,
    SectionPlan,
)

# Of the grid's 24 columns and its rows.
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24


def build_panels(section: SectionPlan) -> list[Any]:
    """The panels of a section, side by side; a single one takes the whole width."""
    width = _COLUMNS if len(section.panels) == 1 else _COLUMNS // max(len(section.panels), _COLUMNS // _WIDTH - 1)
    return [
        _panel(plan, wr.Layout(x=place * width, y=0, w=width, h=_HEIGHT)) for place, plan in enumerate(section.panels)
    ]


def _panel(plan: PanelPlan, layout: wr.Layout) -> Any:
    if plan.kind == "bars":
        return wr.BarPlot(
            title=plan.title,
            metrics=list(plan.results),
            groupby=wr.Metric(METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            layout=layout,
        )
    if plan.kind == "scatter":
        x, y = plan.results
        return wr.ScatterPlot(
            title=plan.title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), log_x=plan.log, layout=layout
        )
    if plan.kind == "curves":
        return wr.LinePlot(
            title=plan.title,
            x=STEP,
            y=list(plan.results),
            groupby=wr.Metric(METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            layout=layout,
        )
    if plan.kind == "parallel":
        shown: list[Any] = [*map(wr.Config, plan.settings), *map(wr.SummaryMetric, plan.results)]
        return wr.ParallelCoordinatesPlot(
            title=plan.title, columns=[wr.ParallelCoordinatesPlotColumn(metric) for metric in shown], layout=layout
        )
    assert plan.kind == "comparer"
    return wr.RunComparer(diff_only=True, layout=layout)


def build_workspace(place: Place) -> ws.Workspace:
    """The workspace; nothing is sent before it is saved."""
    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=place.title,
        sections=[ws.Section(name=section.title, panels=build_panels(section), is_open=True) for section in SECTIONS],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Config("study") == place.study] if place.study else [],
            groupby=[ws.Metric(METHOD)],
            pinned_columns=[f"summary:{key}" for key in (SCORE, TRAINABLE, ESTIMATED_PEAK)],
        ),
    )


_TITLE_LENGTH = 128


def build_report(place: Place) -> wr.Report:
    """The report; nothing is sent before it is saved."""
    blocks: list[Any] = []
    for section in SECTIONS:
        grid = wr.PanelGrid(runsets=[_runset(place)], panels=build_panels(section))
        blocks += [wr.H2(section.title), wr.P(section.text), grid]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=place.title[:_TITLE_LENGTH],
        description="Parameter-efficient fine-tuning methods compared; made by `petl-bench dashboard`.",
        blocks=[wr.TableOfContents(), *blocks],
        width="fluid",
    )


def _runset(place: Place) -> wr.Runset:
    # Without entity and project a run set is the report's own project's; with them W&B would be asked at once.
    return wr.Runset(
        name=place.study or "all runs",
        filters=[expr.Config("study") == place.study] if place.study else [],
        groupby=[METHOD],
    )
