"""`synced.json` in a run's folder: where its record was mirrored, so that `petl-bench sync` does not repeat it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from petl_bench.records.store import read_json, write_json
from petl_bench.records.validate import validate

MARKER_FILE = "synced.json"
MARKER_VERSION = 1


@dataclass(frozen=True)
class Mirror:
    """One finished record in one place.

    Attributes:
        tracker: `wandb` or `tensorboard`.
        project, entity, run_id, mode: W&B's, as W&B resolved them; mode is `online` or `offline`.
        record: Hash of the record that was mirrored.
        files: W&B's offline folder, seen from the run's where it lies in that; None online.
    """

    tracker: str
    record: str
    project: str | None = None
    entity: str | None = None
    run_id: str | None = None
    mode: str | None = None
    files: str | None = None

    def same_place(self, other: Mirror) -> bool:
        """Whether the later of the two took the earlier's place."""
        return (self.tracker, self.project, self.entity) == (other.tracker, other.project, other.entity)


def marker_lock(folder: Path) -> BaseFileLock:
    """Keeps other processes from mirroring this run; the process that holds it may take it again."""
    return FileLock(folder / f"{MARKER_FILE}.lock", is_singleton=True)


def record_hash(content: Mapping[str, Any]) -> str:
    """Hash of a record as it stands in its file."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()[:16]


def read_mirrors(folder: Path) -> list[Mirror]:
    """Where this run was mirrored; nowhere, where the file is missing or is none of ours."""
    try:
        content = read_json(folder / MARKER_FILE)
        return [validate(Mirror, item) for item in content["mirrors"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def mark(folder: Path, mirror: Mirror) -> None:
    """Notes by an atomic rename that the run was mirrored; to be called once nothing is left to send."""
    with marker_lock(folder):
        mirrors = [*(other for other in read_mirrors(folder) if not mirror.same_place(other)), mirror]
        content = {"version": MARKER_VERSION, "mirrors": [dataclasses.asdict(item) for item in mirrors]}
        write_json(folder / MARKER_FILE, content)
