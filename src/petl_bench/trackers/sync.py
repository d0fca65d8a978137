"""Mirrors finished records afterwards, each exactly once, whether or not they were tracked while running."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.records.run_key import identity_of
from petl_bench.records.schema import Record
from petl_bench.records.store import find_record_files, read_json
from petl_bench.trackers import (
    Mirror,
    TrackerConfig,
    history_point,
    marker_lock,
    open_tracker,
    read_mirrors,
    record_hash,
)

_STATE_LABELS = {
    "synced": "mirrored",
    "pending": "to mirror",
    "already": "mirrored already",
    "copy": "left out, a copy",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synced:
    """The outcome for one record.

    Attributes:
        state: `synced`, `pending` (a dry run would have synced it), `already`, or `copy` of a record seen before.
        mirror: Where it is mirrored; None where it is not.
    """

    folder: str
    run_key: str
    state: str
    mirror: Mirror | None = None

    @property
    def line(self) -> str:
        """Returns the outcome as a line for the terminal."""
        files = self.mirror.files if self.mirror else None
        hint = f"  (offline; to upload it: wandb sync {Path(self.folder) / files})" if files else ""
        return f"{_STATE_LABELS[self.state]}: {self.folder}{hint}"


def sync(
    folders: Iterable[str | Path], *, tracker: str = "wandb", project: str | None = None, dry_run: bool = False
) -> Iterator[Synced]:
    """Mirrors every finished record below `folders` that is not mirrored in its present form.

    Args:
        folders: Folders to search for records.
        tracker: `wandb` or `tensorboard`.
        project: W&B's; None: `WANDB_PROJECT`, else where the record is already mirrored, else its run's project.
        dry_run: Whether to only report what would be done.

    Yields:
        The outcome for each finished record.

    Raises:
        RequestError: If a folder does not exist, holds no finished record, or W&B is disabled.
        RunError: If W&B cannot be reached; the same command goes on.
    """
    if tracker == "wandb" and os.environ.get("WANDB_MODE") == "disabled" and not dry_run:
        raise RequestError("WANDB_MODE=disabled mirrors nothing: unset it, or set WANDB_MODE=offline.")
    folders = list(folders)
    target = Mirror(tracker, record="", project=_project(project), entity=os.environ.get("WANDB_ENTITY") or None)
    keys: dict[str, Path] = {}
    for file in find_record_files(folders):
        done = _sync_file(file.resolve(), target, keys, dry_run=dry_run)
        if done is not None:
            yield done
    if not keys:
        raise RequestError(f"No finished run below {', '.join(map(str, folders))}: `petl-bench run` makes one.")


def _project(project: str | None) -> str | None:
    return project or os.environ.get("WANDB_PROJECT") or None


def _sync_file(file: Path, target: Mirror, keys: dict[str, Path], *, dry_run: bool) -> Synced | None:
    folder = file.parent
    # Read under the lock, so that a record that another process has just mirrored is already marked.
    with nullcontext() if dry_run else marker_lock(folder):
        try:
            content = read_json(file)
            record = Record.from_dict(content)
        except (ValueError, OSError) as error:
            _log.warning("%s cannot be read: %s", file, error)
            return None
        if record.status != "finished" or None in (record.protocol, record.scores):
            return None
        first = keys.setdefault(record.run_key, folder)
        if first != folder:
            return Synced(str(folder), record.run_key, "copy")
        earlier = _mirror_of(folder, target)
        if earlier is not None and earlier.record == record_hash(content):
            return Synced(str(folder), record.run_key, "already", earlier)
        if dry_run:
            return Synced(str(folder), record.run_key, "pending")
        _mirror(record, content, folder, target, earlier)
        return Synced(str(folder), record.run_key, "synced", _mirror_of(folder, target))


def _mirror_of(folder: Path, target: Mirror) -> Mirror | None:
    """Returns where the run is mirrored, if that matches the target; None otherwise."""
    for mirror in reversed(read_mirrors(folder)):
        pairs = [(target.project, mirror.project), (target.entity, mirror.entity)]
        # W&B knows the entity only online.
        if mirror.tracker == target.tracker and all(None in pair or pair[0] == pair[1] for pair in pairs):
            return mirror
    return None


def _mirror(record: Record, content: dict[str, Any], folder: Path, target: Mirror, earlier: Mirror | None) -> None:
    """Sends one record; the tracker marks it once nothing is left to send."""
    settings = TrackerConfig(target.tracker)
    ran_with = (record.config.get("tracker") or {}).get("project")
    settings.project = target.project or (earlier and earlier.project) or ran_with or settings.project
    tracker = open_tracker(settings, identity_of(record.config, record.run_key, folder), live=False)
    assert record.protocol
    for entry in record.history:
        tracker.log(entry.step, history_point(entry, record.protocol))
    tracker.finish(content)
