"""The W&B report: the sections of our dashboard as headings with words and panels."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from petl_bench.trackers.panels import METHOD, SECTIONS, Place
from petl_bench.trackers.wandb_panels import build_panels

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
