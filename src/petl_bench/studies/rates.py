"""Chooses among the learning rates that a study tries: the best on the selection split, task by task."""

from __future__ import annotations

import statistics
from itertools import groupby

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.folder import FINISHED, StudyFolder


def choose_rates(runs: list[PlannedRun], folder: StudyFolder) -> None:
    """Sets `chosen` of every run with one of several rates: None until all trials of its method and task have ended.

    The rate with the best mean over the trials' seeds wins, the smaller one of equals; a rate with a trial that failed
    is left out, unless all are. The same records give the same choice in every process.
    """
    several = [run for run in runs if run.learning_rate is not None]
    for _, group in groupby(sorted(several, key=_cell), key=_cell):
        mine = list(group)
        trials = [run for run in mine if run.is_trial]
        if all(folder.ended(run) for run in trials):
            rate = _best_rate(trials, folder)
            for run in mine:
                run.chosen = run.learning_rate == rate
        else:
            for run in mine:
                run.chosen = None


def wanted_now(run: PlannedRun) -> bool:
    """Whether a run can be made now: rates that were not taken end with their trials."""
    return run.is_trial or run.chosen is True


def _cell(run: PlannedRun) -> tuple[str, str]:
    return run.method, run.task


def _best_rate(trials: list[PlannedRun], folder: StudyFolder) -> float | None:
    by_rate: dict[float, list[float | None]] = {}
    for run in trials:
        assert run.learning_rate is not None
        record = folder.record(run)
        by_rate.setdefault(run.learning_rate, []).append(None if record is None else selection_score(record))
    means = {
        rate: statistics.fmean(score for score in scores if score is not None)
        for rate, scores in by_rate.items()
        if None not in scores
    }
    return max(sorted(means or by_rate), key=lambda rate: means.get(rate, 0.0))


def selection_score(record: Record) -> float | None:
    """The score on the selection split of the weights that the protocol selects, higher is better; None: none."""
    if record.status != FINISHED or record.protocol is None or not record.history:
        return None
    sign = 1.0 if record.protocol.higher_is_better else -1.0
    scores = [sign * entry.scores[record.protocol.metric] for entry in record.history]
    return max(scores) if record.protocol.selection == "best" else scores[-1]
