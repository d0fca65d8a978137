"""`petl-bench choose`: which method and settings, for these rows, within this memory and time.

Successive halving: every method at its default, then further settings of each, on few rows or epochs; the better third
of them on more; the best methods on all rows with several seeds. All of it is a study in a folder: its runs have
ordinary records. What goes on is decided once and kept there, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

from petl_bench.config import load_config
from petl_bench.errors import RequestError, RunError, unknown_choice
from petl_bench.methods.registry import all_methods
from petl_bench.process import ends_after
from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun, SearchPlan, StudyFile, selection_score
from petl_bench.studies.answer import selection_means, trained_settings, why_nothing
from petl_bench.studies.choice import (
    DEFAULTS_STEP,
    HEAD_STEP,
    POOLING,
    SEEDS,
    SETTINGS_STEP,
    TRIAL_SEED,
    Choice,
    ChoiceState,
    Limits,
    Step,
    affordable,
    candidate_settings,
    first_subset,
    read_state,
    size_name,
    with_poolings,
)
from petl_bench.studies.choice_trainings import REFERENCE, Candidate, ChoiceRows, Durations, prepare_rows
from petl_bench.studies.definition import StudyRequest
from petl_bench.studies.executors import start_workers
from petl_bench.studies.expand import StudyCell, compose, last_of_each_key, planned_runs
from petl_bench.studies.folder import FINISHED, StudyFolder
from petl_bench.studies.search import RATE, REDUCTION, SearchConfig, draw
from petl_bench.studies.worker import work

# It is a layer plan, which any method can use.
_NOT_CHOSEN = ("layer_selection",)
# Trained at their defaults first, as far as time allows: the reference, the cheapest and the most expensive method.
_FIRST = ("lora", "head", "full")
# The first further settings of a method: multiples of the rate at which it was trained.
_RATES = (10**0.5, 10**-0.5)
# Time reserved for the answer, and for trainings that take longer than predicted.
_ANSWER_SECONDS, _ANSWER_SHARE, _MARGIN = 6.0, 0.02, 0.12
# The trainings that choose leave the time for two trainings on all rows, but at most this share of the time.
_LAST_SHARE = 0.6
_LOOK_SECONDS = 0.5
# What a training that only chooses need not measure.
_UNMEASURED = [f"measure.{name}=false" for name in ("ledger", "predictions", "baselines")]

_log = logging.getLogger(__name__)


def choose(request: StudyRequest, limits: Limits, methods: Sequence[str] | None, started: float) -> Choice:
    """Makes the runs of a choice, as far as time allows.

    Args:
        request: Settings of every run, the study's folder, and where runs are made if not in this process.
        limits: Limits on memory, time, latency and size.
        methods: The methods to choose from; None: all.
        started: `time.monotonic()` when the command began.

    Returns:
        The study, and the decisions made on the way.

    Raises:
        RequestError: If the settings or the rows allow no choice, or nothing fits the limits.
        RunError: If nothing could be trained in time.
    """
    for override in request.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] == "method" or key == RATE:
            raise RequestError(f"{override}: it is chosen here; --methods names the methods to choose among.")
    overrides = list(request.overrides)
    if limits.memory_bytes is not None:
        overrides.insert(0, f"train.cache_memory={max(1, limits.memory_bytes // 4)}B")
    cfg = load_config(overrides)
    names = list(methods or (name for name in all_methods() if name not in _NOT_CHOSEN))
    for name in names:
        if name not in all_methods():
            raise unknown_choice("--methods", name, all_methods())
    folder = StudyFolder(Path(request.runs_dir or f"runs/choose-{cfg.task.name}").expanduser())
    rows = prepare_rows(cfg, overrides, folder.path)
    choice_request = [sorted(overrides), sorted(names), asdict(replace(limits, seconds=None)), rows.fingerprint]
    state = read_state(folder, choice_request)
    state.allow(limits.seconds)
    rows.write()
    _log.info("rows: %s", ", ".join(f"{count:,} {name}" for name, count in rows.counts.items()))
    halving = _Halving(request, limits, rows, state, folder, [*overrides, *rows.overrides], cfg.task.name, started)
    halving.run(names)
    folder.remove_abandoned()
    return Choice(halving.study(), folder, state, limits, rows, [*overrides, *rows.overrides])


class _Halving:
    """The steps of a choice, made one after the other."""

    def __init__(
        self,
        request: StudyRequest,
        limits: Limits,
        rows: ChoiceRows,
        state: ChoiceState,
        folder: StudyFolder,
        overrides: list[str],
        task: str,
        started: float,
    ) -> None:
        self._request, self._limits, self._rows, self._state = request, limits, rows, state
        self._folder, self._overrides, self._task = folder, overrides, task
        # The time of earlier commands counts as well.
        self._begun = started - state.seconds
        self._planned: dict[int, list[PlannedRun]] = {}

    def run(self, methods: list[str]) -> None:
        """Makes all steps; earlier decisions are kept."""
        candidates, state = self._fitting(methods), self._state
        self._retry()
        # The first trainings show how long the others take, and what the head should read.
        self._step(HEAD_STEP, lambda: Step(0, with_poolings(candidates[0], self._overrides), [TRIAL_SEED]))
        if state.first is None:
            best = next((tried for (_, tried), _ in self._ranked([HEAD_STEP])), {})
            state.pooling = {key: value for key, value in best.items() if key == POOLING}
            state.first = self._first_subset(candidates)
        defaults, first = [(method, tried | state.pooling) for method, tried in candidates], state.first
        self._step(DEFAULTS_STEP, lambda: Step(first, defaults, [TRIAL_SEED]))
        # The steps whose scores decide the next one.
        deciding = [DEFAULTS_STEP] if self._ranked([DEFAULTS_STEP]) else [HEAD_STEP]
        if not self._ranked(deciding):
            records = map(self._folder.record, self.study().runs)
            raise RunError(why_nothing(list(records), self._limits, self._elapsed()))
        if state.settings is None:
            state.settings, state.searched, state.finalists = self._affordable()
        self._step(SETTINGS_STEP, lambda: Step(first, self._draws(), [TRIAL_SEED]))
        deciding = [*deciding, SETTINGS_STEP]
        count, number = len(self._ranked(deciding)), SETTINGS_STEP
        for subset in self._rows.halvings(first):
            number += 1
            most = math.ceil(count / REDUCTION ** (number - SETTINGS_STEP))
            better = [candidate for candidate, _ in self._ranked(deciding)[:most]]
            self._step(number, partial(self._in_time, subset, better))
            # If a step could not be made in time, the previous one decides.
            deciding = [number] if self._ranked([number]) else deciding
        finals = number + 1
        self._step(finals, lambda: self._finals(deciding))
        self._step(finals + 1, lambda: self._more_seeds(finals))

    def study(self) -> StudyFile:
        """Returns the study with all steps decided so far."""
        runs = {run.key: run for number in range(len(self._state.steps)) for run in self._runs(number)}
        finals = [run for run in runs.values() if not run.is_trial]
        names = dict.fromkeys(run.method for run in finals or runs.values())
        seeds = sorted({run.seed for run in finals}) or [TRIAL_SEED]
        plan = SearchPlan(max(self._state.settings or 1, 1), "qmc", "halving", TRIAL_SEED)
        about = (f"choose-{self._task}", "The runs of petl-bench choose")
        return StudyFile(*about, list(names), [self._task], seeds, list(runs.values()), search=plan)

    def _retry(self) -> None:
        """Lets failed trainings be made again, unless an earlier command has trained a method on all rows."""
        runs = self.study().runs
        if not any(self._folder.status(run) == FINISHED for run in runs if not run.is_trial):
            for run in runs:
                self._folder.set_aside(run)

    def _fitting(self, methods: list[str]) -> list[Candidate]:
        """Returns every method at its default, or at its nearest size that keeps to the limits, if it has one."""
        defaults: list[Candidate] = []
        for name in methods:
            try:
                defaults.append((name, {RATE: load_config([*self._overrides, f"method={name}"]).train.learning_rate}))
            except RequestError as error:
                self._state.left_out[name] = str(error)
        if not self._state.decided:
            too_large = self._limits.left_out(defaults, self._overrides)
            sizes = {name: self._limits.nearest_size(name, self._overrides) for name in too_large}
            self._state.sizes = {name: size for name, size in sizes.items() if size}
            self._state.left_out |= {name: why for name, why in too_large.items() if not sizes[name]}
            self._state.decided = True
            for name, why in self._state.left_out.items():
                _log.info("left out, %s: %s", name, why)
        left_out, sizes = self._state.left_out, self._state.sizes
        fitting = [(name, tried | sizes.get(name, {})) for name, tried in defaults if name not in left_out]
        if not fitting:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._state.left_out.items())
            raise RequestError(f"No method keeps to the limits ({reasons}): raise them, or lower train.batch_size.")
        return sorted(fitting, key=lambda candidate: [*_FIRST, candidate[0]].index(candidate[0]))

    def _first_subset(self, candidates: list[Candidate]) -> int:
        """Returns the subset on which all methods are trained at their defaults."""
        trained = [record.history[-1].step / float(run.share) for run, record in self._finished(HEAD_STEP)]
        return first_subset(candidates, self._rows.subsets, max(trained, default=0.0), self._durations(), self._left())

    def _draws(self) -> list[Candidate]:
        """Returns further settings of the best methods so far, one method after the other in turn.

        The first are rates near the default, as most of the best ones are; then sizes and rates are drawn together.
        """
        count = (self._state.settings or 1) - 1
        drawn: list[list[Candidate]] = []
        for (method, tried), _ in self._ranked([DEFAULTS_STEP])[: self._state.searched or None] if count else []:
            rates = [float(f"{tried[RATE] * multiple:.3g}") for multiple in _RATES]
            candidates = [(method, tried | {RATE: rate}) for rate in rates[:count]]
            if more := count - len(candidates):
                search = SearchConfig(more, sampler="qmc", seed=TRIAL_SEED)
                space = self._limits.fitting_space(method, self._overrides)
                candidates += [(method, other | self._state.pooling) for other in draw(search, space, method, "choose")]
            drawn.append(candidates)
        in_turn = [candidate for group in zip(*drawn, strict=True) for candidate in group]
        # Two sizes that keep to the limits, each for itself, need not do so together.
        with_two = [candidate for candidate in in_turn if len(candidate[1].keys() - {RATE, POOLING}) > 1]
        too_large = self._limits.left_out(with_two, self._overrides)
        return [candidate for candidate in in_turn if size_name(candidate) not in too_large]

    def _in_time(self, subset: int, candidates: list[Candidate]) -> Step:
        """Returns the step with these candidates, or with none if no time would be left for the best on all rows."""
        predict = self._durations().predict
        seconds = predict(candidates, self._rows.subsets[subset].share) + 2 * predict(candidates[:1], 1.0, reports=True)
        return Step(subset, candidates if seconds < self._left() else [], [TRIAL_SEED])

    def _finals(self, steps: list[int]) -> Step:
        """Returns a step with the best methods' best settings and LoRA's default, as many and long as time allows."""
        best: dict[str, Candidate] = {}
        for (method, tried), _ in self._ranked(steps):
            best.setdefault(method, (method, tried))
        defaults = dict(self._state.steps[DEFAULTS_STEP].candidates)
        reference = [(REFERENCE, {RATE: defaults["lora"][RATE]})] if "lora" in defaults else []
        most = min(self._state.finalists, len(best))
        # Several methods with one seed each are preferred to one with several seeds: shorter trainings chose them.
        plans = [(1.0, SEEDS, number) for number in range(most, min(most, 2) - 1, -1)]
        plans += [(share, SEEDS[:1], number) for share in self._rows.lengths for number in range(most, 0, -1)]
        durations = self._durations()
        # If time is short, drop the comparison rather than the score on rows that played no part in the choice.
        for others, (share, seeds, number) in product((reference, []), plans):
            chosen = list(best.values())[:number]
            chosen += [(name, tried) for name, tried in others if ("lora", tried) not in chosen]
            if durations.predict(chosen, share, len(seeds), reports=True) < self._left():
                return Step(None, chosen, seeds, share)
        _log.warning("the time that is left does not suffice for a training on all rows")
        return Step(None, [], [])

    def _more_seeds(self, number: int) -> Step:
        """Returns a step with further seeds of the best, and of LoRA's default if time allows, if they had one."""
        finals = self._state.steps[number]
        if finals.share < 1 or len(finals.seeds) > 1:
            return Step(None, [], [])
        fast = [run for run, record in self._finished(number) if self._limits.is_fast_enough(record)]
        means = selection_means(self._trained(), fast[0], by_rows=self._rows.by_rows) if fast else {}
        ranked = sorted(fast, key=lambda run: -means[trained_settings(run)])
        chosen = [(run.method, run.tried) for rank, run in enumerate(ranked) if rank == 0 or run.method == REFERENCE]
        predict = self._durations().predict
        for candidates in (chosen, chosen[:1]):
            if candidates and predict(candidates, 1.0, len(SEEDS) - 1, reports=True) < self._left():
                return Step(None, candidates, SEEDS[1:])
        return Step(None, [], [])

    def _affordable(self) -> tuple[int, int, int]:
        """Returns how many settings of how many methods can be tried in time, and how many are trained on all rows."""
        ranked = self._ranked([DEFAULTS_STEP])
        if not ranked:
            return 1, 0, 1
        first = self._state.first or 0
        shares = [self._rows.subsets[index].share for index in (first, *self._rows.halvings(first))]
        return affordable([candidate for candidate, _ in ranked], shares, self._durations(), self._left())

    def _step(self, number: int, decide: Callable[[], Step]) -> None:
        """Decides a step, unless that was done before, and makes its runs as far as time allows."""
        if number == len(self._state.steps):
            self._state.steps.append(replace(decide(), begun=self._elapsed()))
            self._keep()
        step, runs = self._state.steps[number], self._runs(number)
        left = [run for run in runs if not self._folder.ended(run)]
        self.study().write(self._folder.path)
        if not left:
            return
        rows = "all rows" if step.subset is None else self._rows.subsets[step.subset].description
        _log.info("step %d: %d trainings, %s", number + 1, len(left), rows)
        plan = self._folder.write_plan(replace(self.study(), runs=runs, search=None))
        make = self._make_by_workers if self._request.has_executor else self._make_here
        try:
            make(number, plan, left)
        finally:
            self._keep()

    def _make_here(self, number: int, plan: str, runs: list[PlannedRun]) -> None:
        """Makes runs in this process, except those that would not end in time."""
        for run in runs:
            now = self._elapsed()
            if now >= self._step_end(number) - self._seconds(run):
                _log.info("not trained, as the time does not suffice: %s, seed %d", run.method, run.seed)
                continue
            with ends_after(None if self._end() == math.inf else self._step_end(number) - now):
                work(self._folder.path, plan, [run.key])
            self._keep()

    def _seconds(self, run: PlannedRun) -> float:
        return self._durations().predict([(run.method, run.tried)], run.share, reports=not run.is_trial)

    def _make_by_workers(self, number: int, plan: str, runs: list[PlannedRun]) -> None:
        """Makes runs by the executor's workers, which are stopped at the end of the step's time."""
        end = self._step_end(number)
        runs = [run for run in runs if self._elapsed() < end - self._seconds(run)]
        if not runs:
            return
        workers = start_workers(self._request.executor, self._folder, plan, runs)
        try:
            while workers.alive() and self._elapsed() <= end:
                time.sleep(_LOOK_SECONDS)
                self._keep()
        finally:
            if workers.alive():
                workers.stop(signal.SIGINT)

    def _step_end(self, number: int) -> float:
        """Returns when a step must end: those that choose leave time for two trainings on all rows, of some length."""
        if self._state.steps[number].subset is None or self._end() == math.inf:
            return self._end()
        head_step, predict = self._state.steps[HEAD_STEP], self._durations().predict
        most = _LAST_SHARE * (self._end() - head_step.begun)
        needed = [predict(head_step.candidates[:1], share, 2, reports=True) for share in self._rows.lengths]
        return self._end() - next((seconds for seconds in needed if seconds < most), most)

    def _runs(self, number: int) -> list[PlannedRun]:
        """Returns the runs of a step, candidate by candidate."""
        if number in self._planned:
            return self._planned[number]
        step = self._state.steps[number]
        added, share = self._rows.settings(step.subset, step.share)
        is_trial = step.subset is not None
        if not any(override.startswith("train.cache=") for override in self._overrides):
            added = [*added, "train.cache=shared"]
        if is_trial:
            added = [*added, f"measure.inference={str(self._limits.latency_ms is not None).lower()}", *_UNMEASURED]
        planned = []
        for method, tried in step.candidates:
            settings = last_of_each_key([*candidate_settings((method, tried), self._overrides), *added])
            cell = StudyCell(method, self._task, settings, tried)
            runs = planned_runs(cell, compose(cell, self._folder.path), [] if is_trial else step.seeds, step.seeds)
            planned += [replace(run, is_trial=is_trial, chosen=not is_trial, share=share) for run in runs]
        return self._planned.setdefault(number, planned)

    def _finished(self, number: int) -> list[tuple[PlannedRun, Record]]:
        return self._with_records(self._runs(number))

    def _trained(self) -> list[tuple[PlannedRun, Record]]:
        """Returns all runs that finished, each once, though several steps may need it."""
        return self._with_records(self.study().runs)

    def _with_records(self, runs: Sequence[PlannedRun]) -> list[tuple[PlannedRun, Record]]:
        records = [(run, self._folder.record(run)) for run in runs]
        return [(run, record) for run, record in records if record is not None and record.status == FINISHED]

    def _ranked(self, steps: list[int]) -> list[tuple[Candidate, float]]:
        """Returns the steps' candidates that finished and are fast enough, the best on the selection rows first."""
        scored = []
        for number in steps:
            for run, record in self._finished(number):
                score = selection_score(record)
                if score is not None and self._limits.is_fast_enough(record):
                    scored.append(((run.method, run.tried), score))
        return sorted(scored, key=lambda candidate_and_score: -candidate_and_score[1])

    def _durations(self) -> Durations:
        """Returns the predictor of durations, based on all finished trainings."""
        return Durations(self._folder, self._rows, self._trained())

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _end(self) -> float:
        """Returns when the last training must end; the answer follows."""
        seconds = self._limits.seconds
        return math.inf if seconds is None else (1 - _ANSWER_SHARE) * seconds - _ANSWER_SECONDS

    def _left(self) -> float:
        """Returns the seconds left for further trainings, less a margin for those that take longer than predicted."""
        return (1 - _MARGIN) * (self._end() - self._elapsed())

    def _keep(self) -> None:
        self._state.seconds = self._elapsed()
        self._state.keep(self._folder)
