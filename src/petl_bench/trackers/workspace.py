"""The W&B workspace: the sections of our dashboard over a project's runs, grouped by method."""

from __future__ import annotations

import wandb_workspaces.workspaces as ws

from petl_bench.trackers.panels import LEDGER_PEAK, METHOD, SECTIONS, STEP, TRAINABLE, Place
from petl_bench.trackers.values import SCORE
from petl_bench.trackers.wandb_panels import build_panels


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
            pinned_columns=[f"summary:{key}" for key in (SCORE, TRAINABLE, LEDGER_PEAK)],
        ),
    )
