"""Makes W&B's panels of our plans; workspaces and reports take the same ones."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr

from petl_bench.trackers.panels import METHOD, STEP, PanelPlan, SectionPlan

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
