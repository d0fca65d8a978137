"""What a tracker is: a mirror of a run's record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from petl_bench.trackers.config import TrackerConfig


@dataclass(frozen=True)
class RunIdentity:
    """How a run is called.

    Attributes:
        key: The run key; the tracker's id of the run.
        name: Readable.
        group: Method x task x backbone: what differs in seed alone.
        job_type: The method.
        folder: The run's folder.
        config: The whole config.
    """

    key: str
    name: str
    group: str
    job_type: str
    folder: Path
    config: dict[str, Any]


class Tracker(Protocol):
    """Mirrors a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history at this number of updates."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mirrors the record and closes the run, whatever became of it."""


class NoTracker:
    """Mirrors nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""


def open_tracker(settings: TrackerConfig, run: RunIdentity, *, live: bool = True) -> Tracker:
    """Opens the configured tracker.

    Args:
        settings: Which; of a live run, W&B's variable for the project wins over them.
        run: How the run is called.
        live: Whether the run is being made now, or mirrored afterwards.

    Raises:
        RequestError: where its package is missing.
        RunError: where its service cannot be reached.
    """
    if settings.name == "wandb":
        from petl_bench.trackers.wandb import WandbTracker

        asked = os.environ.get("WANDB_PROJECT") if live else None
        return WandbTracker(asked or settings.project, run, live=live)
    if settings.name == "tensorboard":
        from petl_bench.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(run, live=live)
    return NoTracker()
