"""Mirrors a run to Weights & Biases: online, offline or disabled by W&B's usual variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from petl_bench.errors import RunError
from petl_bench.trackers.config import TrackerConfig
from petl_bench.trackers.tracker import RunIdentity, flat_numbers

# Part of the record, but no result.
_NOT_SUMMARY = ("config", "history", "versions", "hardware", "git", "error")

_log = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run; its id is the run key, its group what differs in seed alone."""

    def __init__(self, settings: TrackerConfig, run: RunIdentity) -> None:
        import wandb

        try:
            self._run = wandb.init(
                # W&B's variables win over the config, and are read anew for every run of a process.
                project=os.environ.get("WANDB_PROJECT") or settings.project,
                mode=os.environ.get("WANDB_MODE") or None,  # type: ignore[arg-type]
                id=run.key,
                name=run.name,
                group=run.group,
                job_type=run.job_type,
                config=run.config,
                dir=os.environ.get("WANDB_DIR", str(run.folder)),
                resume="allow",
                reinit="finish_previous",
                # W&B prints to stdout, which belongs to our results.
                settings=wandb.Settings(silent=True),
            )
        except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise RunError(
                f"Weights & Biases could not be reached ({error}): log in with `wandb login`, or set "
                "WANDB_MODE=offline, or use tracker=none."
            ) from error
        _log.info("Weights & Biases: %s", self._run.dir if self._run.offline else self._run.url)
        # W&B's own step counts calls and cannot go back; ours is the number of updates.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history."""
        self._run.log({"step": step, **values})

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes the record's results into the summary and closes the run."""
        kept = {name: value for name, value in record.items() if name not in _NOT_SUMMARY}
        self._run.summary.update({"status": record.get("status"), **flat_numbers(kept)})
        self._run.finish(exit_code=0 if record.get("status") == "finished" else 1)
