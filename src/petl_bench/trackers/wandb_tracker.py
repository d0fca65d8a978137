"""Mirrors a run to Weights & Biases: online, offline or disabled by W&B's usual variables."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

from petl_bench.errors import RunError
from petl_bench.records.study_file import read_study
from petl_bench.trackers import Mirror, RunIdentity, mark, read_mirrors, record_hash, results

# W&B refuses longer tags.
_TAG_LENGTH = 64

_log = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run; its id is the run key, its group what differs in seed alone.

    Args:
        project: Where the run goes; a W&B sweep has its own.
        run: How the run is called.
        live: Whether the run is being made now. Afterwards, nothing of this machine is measured, and offline files of
            the run are replaced: W&B cannot go on with them.
    """

    def __init__(self, project: str, run: RunIdentity, *, live: bool = True) -> None:
        import wandb

        root = Path(os.environ.get("WANDB_DIR") or run.folder)
        if not live:
            _remove_offline_files(root, run, project)
        study = read_study(run.folder.parent)
        tags = [*([study.name] if study else []), run.config["task"]["name"]]
        self._folder = run.folder
        try:
            self._run = wandb.init(
                project=project,
                # Read anew for every run of a process.
                mode=os.environ.get("WANDB_MODE") or None,  # type: ignore[arg-type]
                id=run.key,
                name=run.name,
                group=run.group,
                job_type=run.job_type,
                tags=[tag[:_TAG_LENGTH] for tag in tags],
                config=run.config | ({"study": study.name} if study else {}),
                dir=str(root),
                resume="allow",
                reinit="finish_previous",
                settings=_settings(live=live),
            )
        except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise RunError(
                f"Weights & Biases could not be reached ({error}): log in with `wandb login`, or set "
                "WANDB_MODE=offline, or use tracker=none."
            ) from error
        _log.info("Weights & Biases: %s", self._run.dir if self._run.offline else self._run.url)
        # The axis of every chart: W&B's own step may count otherwise.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history."""
        # W&B drops a point whose step it has passed: of a run that is sent again, no point is there twice.
        self._run.log({"step": step, **values}, step=step)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes the record's results into the summary, closes the run, and marks a finished one as mirrored."""
        import wandb

        done = record.get("status") == "finished"
        self._run.summary.update({"status": record.get("status"), **results(record)})
        mirror = Mirror(
            tracker="wandb",
            record=record_hash(record),
            project=self._run.project,
            entity=self._run.entity or None,
            run_id=self._run.id,
            mode="offline" if self._run.offline else "online",
            files=_seen_from(self._folder, Path(self._run.dir).parent) if self._run.offline else None,
        )
        disabled = self._run.disabled
        self._run.finish(exit_code=0 if done else 1)
        if done and not disabled:
            if mirror.mode == "offline":
                # `finish` returns before the file is written; W&B's process, which writes it, is waited for.
                wandb.teardown()
            mark(self._folder, mirror)


def _remove_offline_files(root: Path, run: RunIdentity, project: str) -> None:
    """Removes what a `sync` that was killed, or of an older record, left of this run; other projects keep theirs."""
    others = [mirror for mirror in read_mirrors(run.folder) if mirror.project != project]
    kept = {(run.folder / mirror.files).resolve() for mirror in others if mirror.files}
    for files in root.glob(f"wandb/offline-run-*-{escape(run.key)}"):
        if files.resolve() not in kept:
            shutil.rmtree(files)


def _seen_from(folder: Path, files: Path) -> str:
    files, folder = files.resolve(), folder.resolve()
    return str(files.relative_to(folder) if files.is_relative_to(folder) else files)


def _settings(*, live: bool) -> Any:
    import wandb

    return wandb.Settings(
        # W&B prints to stdout, which belongs to our results.
        silent=True,
        # The record says what a run was made with. W&B would add the remote of the git repository in the working
        # directory, the command line, the user, the machine's name, paths, and what the terminal shows.
        console="off", disable_git=True, disable_code=True, x_disable_meta=True, host="-", username="-", program="-",
        x_disable_stats=not live,
    )  # fmt: skip
