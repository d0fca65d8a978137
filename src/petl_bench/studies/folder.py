"""A study's folder: its files, which process works on which run, each run's status, and the chosen settings."""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# Far longer than one of the study's small files takes to be written.
_WRITING_SECONDS = 10.0

WAITING, RUNNING, INTERRUPTED, FINISHED = "waiting", "running", "interrupted", "finished"

# Statuses of failed runs, which are made again only on request.
FAILURES = ("failed", "out_of_memory", "diverged")


class StudyFolder:
    """The folder of one study.

    Several processes, also on several machines that share the folder, may work in it at the same time: the process that
    holds a run's lock makes the run. A lock ends with its process, however that ends.

    Args:
        path: The folder; created when needed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.private = path, path / _PRIVATE
        self._records: dict[str, tuple[int, Record | None]] = {}

    def run_folder(self, run: PlannedRun) -> RunFolder:
        """Returns the folder of a run's files."""
        return RunFolder(self.path / run.folder)

    def record(self, run: PlannedRun) -> Record | None:
        """Returns a run's record; None without one, or if its times belong to another `train.cache` than the run's.

        The record is read again only if the file has changed.
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
        """Returns the status of a run: its record's status, `running` or `waiting`."""
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
        """Holds a run's lock if no other process does; yields whether it was acquired."""
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
        """Returns the process that works on a run (`pid`, `host`, `since`); None if there is none."""
        holder = self.last_holder(run)
        if holder is None:
            return None
        lock = self._lock(run)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return holder
        except OSError:
            # No process works in a folder that is not writable.
            return None
        # The holder's file was left behind by a killed process.
        lock.release()
        return None

    def last_holder(self, run: PlannedRun) -> dict[str, Any] | None:
        """Returns the process that works on a run or was killed while doing so; None if there is none."""
        try:
            holder: dict[str, Any] = json.loads(self._holder_file(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return holder if isinstance(holder, dict) else None

    def set_aside(self, run: PlannedRun) -> None:
        """Renames a failed run's record, so that the run is made again; its training starts from the beginning."""
        with self.held(run) as is_ours:
            if is_ours and (record := self.run_folder(run).read()) is not None and record.status in FAILURES:
                file = self.path / run.folder / RECORD_FILE
                file.replace(file.with_name(f"{record.status}-{int(time.time())}.json"))
                self.run_folder(run).remove_checkpoints()

    def tidy(self, run: PlannedRun) -> None:
        """Deletes the files that a killed process left next to a record."""
        with self.held(run) as is_ours:
            if is_ours and self.ended(run):
                self.run_folder(run).remove_leftovers()

    def remove_abandoned(self) -> None:
        """Deletes the study's own files that a killed process had begun to write.

        Writing takes an instant, so a file that has not changed for seconds and whose process is gone is one of these.
        The process may be on another machine, so the age counts as well.
        """
        import psutil

        for file in (*self.path.glob("*.partial"), *self.private.glob("*.partial")):
            with suppress(OSError, ValueError):
                is_old = time.time() - file.stat().st_mtime > _WRITING_SECONDS
                if is_old and not psutil.pid_exists(int(file.stem.rpartition(".")[2])):
                    file.unlink()

    def read_basis(self) -> dict[str, Any]:
        """Reads what the study's keys depend on; empty if that is not known."""
        try:
            basis: dict[str, Any] = json.loads((self.private / _BASIS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return basis if isinstance(basis, dict) else {}

    def write_basis(self, basis: dict[str, Any]) -> None:
        """Stores what the study's keys depend on."""
        write_json(self.private / _BASIS_FILE, basis)

    def write_plan(self, study: StudyFile) -> str:
        """Stores the workers' runs separately from `study.json`, which another command may replace.

        Returns:
            The file's name.
        """
        name = f"plan-{study.digest}.json"
        study.write(self.private, name)
        return name

    def read_plan(self, name: str) -> StudyFile:
        """Reads what `write_plan` stored.

        Raises:
            RequestError: If the file is gone.
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

    The settings with the best mean over the trials' seeds are chosen; of equal ones, those with the smaller learning
    rate, then the first. Settings with a failed trial are left out, unless all have one, and so are trials that were
    ended early. The same records lead to the same choice in every process.
    """
    still_searched = {(cell.method, cell.task) for cell in (study.search.cells if study.search else ()) if cell.is_open}
    with_settings = [run for run in study.runs if run.tried]
    for pair, group in groupby(sorted(with_settings, key=_pair), key=_pair):
        runs = list(group)
        trials = [run for run in runs if run.is_trial]
        if not trials:
            # The last trainings of `petl-bench choose`: their settings were chosen before.
            continue
        is_open = pair in still_searched or not all(folder.ended(run) for run in trials)
        best = None if is_open else _best_settings(trials, folder)
        for run in runs:
            if run.seed in study.seeds:
                run.chosen = None if is_open else run.candidate == best


def is_ready(run: PlannedRun) -> bool:
    """Whether a run can be made now: if several settings are tried, all runs but the trials wait for the choice."""
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
