"""A study's folder: its files, who works on which run, what became of each, and which settings were chosen."""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.store import RECORD_FILE, RunFolder, write_json
from petl_bench.records.study_file import PlannedRun, StudyFile, read_study, selection_score

_PRIVATE = ".study"

_BASIS_FILE = "basis.json"

WAITING, RUNNING, INTERRUPTED, FINISHED = "waiting", "running", "interrupted", "finished"

# What ends a run until it is asked for again.
FAILURES = ("failed", "out_of_memory", "diverged")


class StudyFolder:
    """The folder of one study.

    Several processes, on several machines where they share the folder, may work in it at once: who holds a run's lock
    makes it. A lock goes with its process, whatever ends that.

    Args:
        path: The folder; made when needed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.private = path, path / _PRIVATE
        self._records: dict[str, tuple[int, Record | None]] = {}

    def run_folder(self, run: PlannedRun) -> RunFolder:
        """Where a run's files lie."""
        return RunFolder(self.path / run.folder)

    def record(self, run: PlannedRun) -> Record | None:
        """A run's record; None without one, or with times of another `train.cache` than the run's.

        It is read again only if the file has changed.
        """
        try:
            changed = (self.path / run.folder / RECORD_FILE).stat().st_mtime_ns
        except OSError:
            return None
        known = self._records.get(run.key)
        if known is None or known[0] != changed:
            known = self._records[run.key] = (changed, self.run_folder(run).read())
        record = known[1]
        return record if record is None or record.status != FINISHED or record.answers(run.cache) else None

    def status(self, run: PlannedRun) -> str:
        """What has become of a run: its record's status, `running` or `waiting`."""
        record = self.record(run)
        if record is not None and record.status not in (INTERRUPTED,):
            return record.status
        if self.holder(run) is not None:
            return RUNNING
        return WAITING if record is None else INTERRUPTED

    def ended(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do for a run."""
        record = self.record(run)
        return record is not None and record.status in (FINISHED, *FAILURES)

    @contextmanager
    def held(self, run: PlannedRun) -> Iterator[bool]:
        """Holds a run's lock, where nobody else does: gives whether it is ours."""
        self.private.mkdir(parents=True, exist_ok=True)
        lock = self._lock(run)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        holder = self._holder_file(run)
        try:
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
            yield True
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def holder(self, run: PlannedRun) -> dict[str, Any] | None:
        """Who works on a run: `pid`, `host`, `since`; None where nobody does."""
        holder = self.last_holder(run)
        if holder is None:
            return None
        lock = self._lock(run)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return holder
        except OSError:
            # Nobody works in a folder that cannot be written.
            return None
        # What a killed process left.
        lock.release()
        return None

    def last_holder(self, run: PlannedRun) -> dict[str, Any] | None:
        """Who works on a run, or was killed while doing so."""
        try:
            holder: dict[str, Any] = json.loads(self._holder_file(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return holder if isinstance(holder, dict) else None

    def set_aside(self, run: PlannedRun) -> None:
        """Renames a failed run's record, so that the run is made again; a training starts from its start."""
        with self.held(run) as is_ours:
            if is_ours and (record := self.run_folder(run).read()) is not None and record.status in FAILURES:
                file = self.path / run.folder / RECORD_FILE
                file.replace(file.with_name(f"{record.status}-{int(time.time())}.json"))
                self.run_folder(run).remove_checkpoints()

    def tidy(self, run: PlannedRun) -> None:
        """Deletes what a killed process left next to a record."""
        with self.held(run) as is_ours:
            if is_ours and self.ended(run):
                self.run_folder(run).remove_leftovers()

    def read_basis(self) -> dict[str, Any]:
        """On what the study's keys rest; empty where that is not known."""
        try:
            basis: dict[str, Any] = json.loads((self.private / _BASIS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return basis if isinstance(basis, dict) else {}

    def write_basis(self, basis: dict[str, Any]) -> None:
        """Keeps on what the study's keys rest."""
        write_json(self.private / _BASIS_FILE, basis)

    def write_plan(self, study: StudyFile) -> str:
        """Keeps what workers are to make, apart from `study.json`, which another command may replace.

        Returns:
            The file's name.
        """
        name = f"plan-{study.digest}.json"
        study.write(self.private, name)
        return name

    def read_plan(self, name: str) -> StudyFile:
        """What `write_plan` kept.

        Raises:
            RequestError: If it is gone.
        """
        study = read_study(self.private, name)
        if study is None:
            raise RequestError(f"{self.private / name} is gone: start the study again.")
        return study

    def _lock(self, run: PlannedRun) -> FileLock:
        return FileLock(self.private / f"{run.key}.lock")

    def _holder_file(self, run: PlannedRun) -> Path:
        return self.private / f"{run.key}.holder"


def choose_settings(study: StudyFile, folder: StudyFolder) -> None:
    """Sets `chosen` of the runs with settings that are tried: None until all trials of a method on a task have ended.

    The settings with the best mean over the trials' seeds win, of equal ones those with the smaller learning rate, then
    the first. Settings with a trial that failed are left out, unless all have one, and so are trials that were ended
    early. The same records give the same choice in every process.
    """
    still_searched = {(cell.method, cell.task) for cell in (study.search.cells if study.search else ()) if cell.is_open}
    with_settings = [run for run in study.runs if run.tried]
    for pair, group in groupby(sorted(with_settings, key=_pair), key=_pair):
        runs = list(group)
        trials = [run for run in runs if run.is_trial]
        if not trials:
            # What `petl-bench choose` trains last was chosen before.
            continue
        is_open = pair in still_searched or not all(folder.ended(run) for run in trials)
        best = None if is_open else _best_settings(trials, folder)
        for run in runs:
            if run.seed in study.seeds:
                run.chosen = None if is_open else run.candidate == best


def is_ready(run: PlannedRun) -> bool:
    """Whether a run can be made now: where settings are tried, all but the trials wait for the choice among them."""
    return run.is_trial or run.chosen is True


def _pair(run: PlannedRun) -> tuple[str, str]:
    return run.method, run.task


def _best_settings(trials: list[PlannedRun], folder: StudyFolder) -> str:
    longest = max(run.share for run in trials)
    scores: dict[str, list[float | None]] = {}
    for run in sorted(trials, key=lambda run: run.learning_rate or 0.0):
        if run.share == longest:
            record = folder.record(run)
            scores.setdefault(run.candidate, []).append(None if record is None else selection_score(record))
    means = {
        name: statistics.fmean(score for score in of_seeds if score is not None)
        for name, of_seeds in scores.items()
        if None not in of_seeds
    }
    return max(means or scores, key=lambda name: means.get(name, 0.0))
