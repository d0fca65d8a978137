"""Settings of the tracker, which mirrors a run to a dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

TRACKERS = ("none", "wandb", "tensorboard")


@dataclass
class TrackerConfig:
    """Where a run is mirrored; never the source of a number."""

    name: str = MISSING
    project: str = "petl_bench"
