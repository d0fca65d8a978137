"""A study, top to bottom: expand it, skip what is finished, make the rest, say what became of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from petl_bench.errors import Interrupted
from petl_bench.records.study_file import PlannedCosts, PlannedRun, StudyFile, read_study
from petl_bench.studies.config import StudyConfig
from petl_bench.studies.executors import start_workers
from petl_bench.studies.expand import Basis, cells, compose, expand, still_true
from petl_bench.studies.folder import FINISHED, StudyFolder
from petl_bench.studies.open import open_study
from petl_bench.studies.predict_costs import predict_costs
from petl_bench.studies.progress import Progress
from petl_bench.studies.rates import choose_rates
from petl_bench.studies.request import StudyRequest

_PAUSE = 0.2


@dataclass(frozen=True)
class Study:
    """A study that was opened.

    Attributes:
        file: All its runs.
        folder: Where they lie.
        runs: Those that are asked for now.
        config: What it was expanded from.
        request: What the command asks for.
        basis: On what the runs' keys rest, where they were found anew.
    """

    file: StudyFile
    folder: StudyFolder
    runs: list[PlannedRun]
    config: StudyConfig
    request: StudyRequest
    basis: Basis | None

    def statuses(self) -> list[tuple[PlannedRun, str]]:
        """Every run that is asked for, with what has become of it; rates that were not taken are left out."""
        choose_rates(self.file.runs, self.folder)
        return [(run, self.folder.status(run)) for run in self.runs if run.chosen is not False or run.is_trial]


def prepare(name_or_file: str, request: StudyRequest) -> Study:
    """Opens and expands a study; nothing is written.

    Raises:
        RequestError: where it, or what is asked of it, cannot work.
    """
    name, config = open_study(name_or_file)
    if request.seeds is not None:
        config = replace(config, seeds=request.seeds)
    folder = StudyFolder(request.folder(name))
    found, basis = read_study(folder.path), None
    if found is not None and still_true(folder.read_basis(), config, request.words):
        file = found
    else:
        file, basis = expand(name, config, request.words, folder.path)
        file.costs = found.costs if found is not None else []
    return Study(file, folder, request.narrowed(file.runs, config), config, request, basis)


def keep(study: Study) -> None:
    """Writes `study.json`."""
    study.file.write(study.folder.path)
    if study.basis is not None:
        study.folder.write_basis(study.basis)


def count_costs(study: Study) -> list[PlannedCosts]:
    """Parameters and peak memory of the methods and tasks that are asked for, before any run."""
    asked_for = {(run.method, run.task) for run in study.runs}
    found = (cell for cell in cells(study.config, study.request.words) if (cell.method, cell.task) in asked_for)
    return predict_costs([(cell, compose(cell, study.folder.path)) for cell in found])


def run_study(study: Study, *, retry_failed: bool = False) -> list[PlannedRun]:
    """Makes what is left of a study.

    Args:
        study: From `prepare`.
        retry_failed: Make failed runs again.

    Returns:
        The runs that are not finished: failed ones, and ones that nobody could make.

    Raises:
        RunError: where workers cannot work at all.
        Interrupted: on Ctrl-C or SIGTERM, after the workers have stopped.
    """
    if retry_failed:
        for run in study.runs:
            study.folder.set_aside(run)
    choose_rates(study.file.runs, study.folder)
    keep(study)
    left = _left(study)
    if left:
        with _sigterm_raises(), Progress(study.runs, study.folder) as progress:
            workers = start_workers(study.request.executor, study.folder, left)
            try:
                while workers.alive():
                    choose_rates(study.file.runs, study.folder)
                    progress.update()
                    time.sleep(_PAUSE)
            except (Interrupted, KeyboardInterrupt) as error:
                workers.stop(error.signum if isinstance(error, Interrupted) else signal.SIGINT)
                raise
            choose_rates(study.file.runs, study.folder)
        keep(study)
    return [run for run, status in study.statuses() if status != FINISHED and run.chosen is not False]


def _left(study: Study) -> list[PlannedRun]:
    return [run for run in study.runs if run.chosen is not False and not study.folder.ended(run)]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def interrupt(signum: int, _frame: FrameType | None) -> None:
        raise Interrupted(signum)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
