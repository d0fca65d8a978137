"""Mirrors of a run's record on a dashboard; never the source of a number."""

from __future__ import annotations

import os

from petl_bench.trackers.tracker import (
    NoTracker,
    RunIdentity,
    TensorBoardTracker,
    Tracker,
    TrackerConfig,
    WandbTracker,
)


def open_tracker(settings: TrackerConfig, run: RunIdentity, *, live: bool = True) -> Tracker:
    """Opens the configured tracker.

    Args:
        settings: Which; of a live run, W&B's variable for the project wins over them.
        run: How the run is called.
        live: Whether the run is being made now, or mirrored afterwards.

    Raises:
        RequestError: If its package is missing.
        RunError: If its service cannot be reached.
    """
    if settings.name == "wandb":
        asked = os.environ.get("WANDB_PROJECT") if live else None
        return WandbTracker(asked or settings.project, run, live=live)
    if settings.name == "tensorboard":
        return TensorBoardTracker(run, live=live)
    return NoTracker()
