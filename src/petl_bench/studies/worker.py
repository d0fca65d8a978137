"""A worker process of a study: takes a run that no other process holds, makes it, and takes the next.

Started by an executor as `python -m petl_bench.studies.worker FOLDER PLAN KEYS`; ends with the process that holds the
other end of its standard input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from petl_bench.errors import Interrupted, RequestError, RunError, explained_refusal
from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.expand import grow
from petl_bench.studies.folder import StudyFolder, choose_settings, is_ready

# Seconds before the next check of what other processes do.
_PAUSE = 1.0

_log = logging.getLogger(__name__)


def work(path: Path, plan: str, keys: list[str]) -> None:
    """Makes the runs of a study until none is left that this process could make or take over.

    Args:
        path: The study's folder.
        plan: Name of the file there that lists the study's runs.
        keys: The keys of the runs to make.
    """
    folder = StudyFolder(path)
    study = folder.read_plan(plan)
    others = {run.key for run in study.runs} - set(keys)
    pairs = {(run.method, run.task) for run in study.runs if run.key not in others}
    made: set[str] = set()
    while True:
        grow(study, folder, pairs)
        choose_settings(study, folder)
        # Seed by seed, so that all methods can already be compared halfway through.
        by_seed = sorted(study.runs, key=lambda run: study.seeds.index(run.seed) if run.seed in study.seeds else -1)
        # The given runs, and those that a search has added for the same methods and tasks.
        runs = [run for run in by_seed if run.key not in others and (run.method, run.task) in pairs]
        # A run that was made here and has not ended could not be recorded: it is not tried again.
        left = [run for run in runs if run.is_asked_for and run.key not in made and not folder.ended(run)]
        if not left:
            return
        made_now = {run.key for run in left if is_ready(run) and _make_if_free(run, folder)}
        made |= made_now
        if not made_now:
            if not any(is_ready(run) for run in left) and not _trials_left(left, study.runs, folder):
                return
            # Other processes work on the remaining runs; if one of them is killed, its run is taken over.
            time.sleep(_PAUSE)


def _trials_left(left: list[PlannedRun], runs: list[PlannedRun], folder: StudyFolder) -> bool:
    """Whether another process may still finish the trials that these runs wait for."""
    cells = {(run.method, run.task) for run in left}
    trials = [run for run in runs if run.is_trial and (run.method, run.task) in cells]
    return any(folder.holder(run) is not None for run in trials)


def _make_if_free(run: PlannedRun, folder: StudyFolder) -> bool:
    if folder.ended(run):
        return False
    with folder.held(run) as is_ours:
        if not is_ours or folder.ended(run):
            return False
        make(run, folder)
        if folder.ended(run):
            folder.run_folder(run).remove_leftovers()
    return True


def make(run: PlannedRun, folder: StudyFolder) -> None:
    """Makes one run; if it fails, the failure is written to its record and not raised."""
    from petl_bench.config import load_config
    from petl_bench.run.lifecycle import identify
    from petl_bench.run.run import run as run_one

    try:
        cfg = load_config(run.overrides)
        cfg.runs_dir = str(folder.path)
        identity = identify(cfg)
        if identity.key != run.key:
            raise RequestError(
                f"{run.method} on {run.task}: the settings, the program, the rows or what train.device=auto and "
                "train.precision=auto mean here have changed since the study was started: start it again, with "
                "train.device=cuda and a precision if it is started on a machine without the workers' GPU."
            )
        run_one(cfg)
    except RunError as error:
        # The failure is already in its record.
        _log.warning("%s", error)
    except RequestError as error:
        _log.warning("%s", error)
        write_failure(run, folder, str(error))
    except SystemExit as error:
        write_failure(run, folder, f"The run ended its process by itself, with exit code {error.code}.")


def write_failure(run: PlannedRun, folder: StudyFolder, error: str) -> None:
    """Records a failure that occurred before or after the run itself could record anything."""
    config = {"method": {"name": run.method}, "task": {"name": run.task}, "train": {"seed": run.seed}}
    folder.run_folder(run).write(Record(run_key=run.key, config=config, status="failed", error=error))


def _end_with_parent() -> None:
    """Ends this process with the executor: however the executor ends, that closes our standard input."""

    def wait() -> None:
        """Ends the process when standard input is closed."""
        # Not through sys.stdin, whose lock a waiting thread would hold while the interpreter shuts down.
        while os.read(0, 1):
            pass
        # Without a record or message, as if both processes had been killed; the same command continues from there.
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Runs the worker process.

    Returns:
        The exit code.
    """
    from petl_bench.process import setup_logging

    _end_with_parent()
    setup_logging()
    try:
        work(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","))
    except (RequestError, RunError) as error:
        _log.error("%s", error)
        return error.exit_code
    except OSError as error:
        sentence = explained_refusal(error, sys.argv[1], "give the study another folder with runs_dir=DIR")
        if sentence is None:
            raise
        _log.error("%s", sentence)
        return RunError.exit_code
    except Interrupted as error:
        return 128 + error.signum
    return 0


if __name__ == "__main__":
    sys.exit(main())
