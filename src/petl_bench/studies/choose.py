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
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from petl_bench.config import load_config
from petl_bench.errors import RequestError, RunError, unknown_choice
from petl_bench.methods.registry import all_methods
from petl_bench.process import ends_after
from petl_bench.records.schema import Record
from petl_bench.records.store import RECORD_FILE
from petl_bench.records.study_file import PlannedRun, SearchPlan, StudyFile, selection_score
from petl_bench.studies.choice import (
    REFERENCE,
    Candidate,
    ChoiceRows,
    ChoiceState,
    Limits,
    Step,
    prepare_rows,
    read_state,
    settings_of,
    size_name,
)
from petl_bench.studies.definition import StudyRequest
from petl_bench.studies.executors import start_workers
from petl_bench.studies.expand import StudyCell, compose, last_of_each_key, planned_runs
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.search import RATE, SearchConfig, default_space, draw
from petl_bench.studies.worker import work

SEEDS = [0, 1, 2]
TRIAL_SEED = 1000

# It is a layer plan, which every method can have.
_NOT_CHOSEN = ("layer_selection",)
# How many settings of each method are tried where time is given, by preference; and where none is.
_SETTINGS = (8, 6, 5, 4, 3, 2, 1)
_SETTINGS_WITHOUT_TIME = 4
_FINALISTS = 3
# A step keeps one of so many candidates.
_REDUCTION = 3
# Time that is kept for the answer, and for what takes longer than predicted.
_ANSWER_SECONDS, _ANSWER_SHARE, _MARGIN = 6.0, 0.02, 0.12
# Of the time left, the methods' first runs may take this share.
_FIRST_SHARE = 0.4
_LOOK_SECONDS = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A choice that was made: the study in its folder, and what was decided on the way."""

    study: StudyFile
    folder: StudyFolder
    state: ChoiceState
    limits: Limits
    rows: ChoiceRows
    overrides: list[str]

    def record(self, run: PlannedRun) -> Record | None:
        """A run's record, if it finished."""
        record = self.folder.record(run)
        return record if record is not None and record.status == "finished" else None

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.study.tasks[0]


def choose(request: StudyRequest, limits: Limits, methods: Sequence[str] | None, started: float) -> Choice:
    """Makes the runs of a choice, as far as the time allows.

    Args:
        request: Settings of every run, the study's folder, and where runs are made if not in this process.
        limits: Memory, time, latency and size.
        methods: Those to choose among; None: all.
        started: `time.monotonic()` when the command began.

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
    asked = [overrides, names, asdict(replace(limits, seconds=None)), rows.fingerprint]
    state = read_state(folder, asked)
    _log.info("rows: %s", ", ".join(f"{count:,} {name}" for name, count in rows.counts.items()))
    maker = _Maker(request, limits, rows, state, folder, [*overrides, *rows.overrides], cfg.task.name, started)
    maker.halve(names)
    return Choice(maker.study(), folder, state, limits, rows, [*overrides, *rows.overrides])


class _Maker:
    """Makes the steps of a choice one after the other."""

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
        self._request, self._limits, self._rows, self._state, self._folder = request, limits, rows, state, folder
        self._overrides, self._task = overrides, task
        # The time that earlier commands took counts, too.
        self._begun = started - state.seconds
        self._planned: dict[int, list[PlannedRun]] = {}

    def halve(self, methods: list[str]) -> None:
        """Makes all steps; what was decided before stays decided."""
        candidates = self._fitting(methods)
        self._step(0, lambda: Step(0, candidates, [TRIAL_SEED]), _FIRST_SHARE)
        if not self._ranked([0]):
            raise RunError(self._why_nothing())
        if self._state.settings is None:
            self._state.settings, self._state.finalists = self._affordable()
        self._step(1, lambda: Step(0, self._draws(), [TRIAL_SEED]))
        count, last = len(self._ranked([0, 1])), [0, 1]
        for number, subset in enumerate(range(1, len(self._rows.subsets)), start=2):
            kept = [one for one, _ in self._ranked(last)[: math.ceil(count / _REDUCTION**subset)]]
            self._step(number, lambda: self._in_time(subset, kept))  # noqa: B023
            # Where a step could not be made in time, the one before decides.
            last = [number] if self._ranked([number]) else last
        self._step(len(self._rows.subsets) + 1, lambda: self._finals(last))

    def study(self) -> StudyFile:
        """The study as far as it was decided."""
        runs = {run.key: run for number in range(len(self._state.steps)) for run in self._runs(number)}
        finals = [run for run in runs.values() if not run.is_trial]
        names = dict.fromkeys(run.method for run in finals or runs.values())
        seeds = sorted({run.seed for run in finals}) or [TRIAL_SEED]
        plan = SearchPlan(max(self._state.settings or 1, 1), "qmc", "halving", TRIAL_SEED)
        description = "The runs of petl-bench choose"
        return StudyFile("choose", description, list(names), [self._task], seeds, list(runs.values()), search=plan)

    # What each step trains.

    def _fitting(self, methods: list[str]) -> list[Candidate]:
        """Every method at its default, but for those that do not keep to the limits."""
        defaults: list[Candidate] = []
        for name in methods:
            try:
                defaults.append((name, {RATE: load_config([*self._overrides, f"method={name}"]).train.learning_rate}))
            except RequestError as error:
                self._state.left_out[name] = str(error)
        if not self._state.decided:
            self._state.left_out |= self._limits.left_out(defaults, self._overrides)
            self._state.decided = True
            for name, why in self._state.left_out.items():
                _log.info("left out, %s: %s", name, why)
        found = [one for one in defaults if one[0] not in self._state.left_out]
        if not found:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._state.left_out.items())
            raise RequestError(f"No method keeps to the limits ({reasons}): raise them, or lower train.batch_size.")
        # The reference first, as all others are compared with it.
        return sorted(found, key=lambda one: one[0] != "lora")

    def _draws(self) -> list[Candidate]:
        """Further settings of each method that was trained at its default, in turn."""
        count = (self._state.settings or 1) - 1
        drawn: list[list[Candidate]] = []
        for (method, _), _ in self._ranked([0]) if count else []:
            space = default_space(load_config([*self._overrides, f"method={method}"]))
            search = SearchConfig(count, sampler="qmc", seed=TRIAL_SEED)
            drawn.append([(method, tried) for tried in draw(search, space, method, "choose")])
        found = [one for group in zip(*drawn, strict=True) for one in group]
        too_large = self._limits.left_out(found, self._overrides)
        return [one for one in found if size_name(one) not in too_large]

    def _in_time(self, subset: int, candidates: list[Candidate]) -> Step:
        """The step with these candidates; without any, if it would leave no time for the best of them on all rows."""
        seconds = self._cost(candidates, subset) + self._cost(candidates[:1], None, len(SEEDS))
        return Step(subset, candidates if seconds < self._left() else [], [TRIAL_SEED])

    def _finals(self, steps: list[int]) -> Step:
        """The best settings of the best methods, and LoRA at its default: as many as time allows."""
        best: dict[str, Candidate] = {}
        for one, _ in self._ranked(steps):
            best.setdefault(one[0], one)
        default = next((one for one in self._state.steps[0].candidates if one[0] == "lora"), None)
        for number in range(min(self._state.finalists, len(best)), 0, -1):
            chosen = list(best.values())[:number]
            if default is not None and default not in chosen:
                chosen.append((REFERENCE, default[1]))
            for seeds in (SEEDS, SEEDS[:1]) if number == 1 else (SEEDS,):
                if self._cost(chosen, None, len(seeds)) < self._left():
                    return Step(None, chosen, seeds)
        _log.warning("the time that is left does not suffice for a training on all rows")
        return Step(None, [], [])

    def _affordable(self) -> tuple[int, int]:
        """How many settings of each method can be tried, and how many methods trained on all rows, in time."""
        if self._limits.seconds is None:
            return _SETTINGS_WITHOUT_TIME, _FINALISTS
        tried = [one for one, _ in self._ranked([0])]
        subsets: list[int | None] = [*range(len(self._rows.subsets)), None]
        means = [self._cost(tried, subset) / len(tried) for subset in subsets]
        for finalists in range(_FINALISTS, 0, -1):
            for settings in _SETTINGS:
                count = settings * len(tried)
                runs = [count - len(tried), *(math.ceil(count / _REDUCTION**k) for k in range(1, len(subsets) - 1))]
                runs.append(len(SEEDS) * (finalists + 1))
                seconds = sum(number * mean for number, mean in zip(runs, means, strict=True))
                if seconds < self._left():
                    _log.info(
                        "%d settings of each method, the best %d on all rows: about %.0f s",
                        settings,
                        finalists,
                        seconds,
                    )
                    return settings, finalists
        return 1, 1

    # Runs, and what is known of them.

    def _step(self, number: int, decide: Callable[[], Step], share: float = 1.0) -> None:
        """Makes a step, as it was decided before or is decided now, in this share of the time that was left then."""
        if number == len(self._state.steps):
            self._state.steps.append(replace(decide(), begun=self._elapsed()))
        self._keep()
        step, runs = self._state.steps[number], self._runs(number)
        left = [run for run in runs if not self._folder.ended(run)]
        end = step.begun + share * max(0.0, self._end() - step.begun)
        seconds = None if end == math.inf else end - self._elapsed()
        self.study().write(self._folder.path)
        if not left or (seconds is not None and seconds <= 0):
            return
        what = "all rows" if step.subset is None else self._rows.subsets[step.subset].words
        _log.info("step %d: %d trainings, %s", number + 1, len(left), what)
        plan = self._folder.write_plan(replace(self.study(), runs=runs, search=None))
        if not self._request.has_executor:
            with ends_after(seconds):
                work(self._folder.path, plan, [run.key for run in left])
        else:
            workers = start_workers(self._request.executor, self._folder, plan, left)
            try:
                while workers.alive():
                    if self._elapsed() > end:
                        workers.stop(signal.SIGINT)
                        break
                    time.sleep(_LOOK_SECONDS)
            except BaseException:
                workers.stop(signal.SIGINT)
                raise
        self._keep()

    def _runs(self, number: int) -> list[PlannedRun]:
        """The runs of a step, candidate by candidate."""
        if number in self._planned:
            return self._planned[number]
        step = self._state.steps[number]
        added, share = list[str](), 1.0
        if step.subset is not None:
            subset = self._rows.subsets[step.subset]
            times = "true" if self._limits.latency_ms is not None else "false"
            measure = [f"measure.{name}=false" for name in ("ledger", "predictions", "baselines")]
            added, share = [*subset.overrides, f"measure.inference={times}", *measure], subset.share
        planned = []
        for one in step.candidates:
            settings = last_of_each_key([*settings_of(one, self._overrides), *added])
            cell = StudyCell(one[0], self._task, settings, one[1])
            is_trial = step.subset is not None
            found = planned_runs(cell, compose(cell, self._folder.path), [] if is_trial else step.seeds, step.seeds)
            planned += [replace(run, is_trial=is_trial, chosen=not is_trial, share=share) for run in found]
        return self._planned.setdefault(number, planned)

    def _finished(self, number: int) -> list[tuple[PlannedRun, Record]]:
        found = ((run, self._folder.record(run)) for run in self._runs(number))
        return [(run, record) for run, record in found if record is not None and record.status == "finished"]

    def _ranked(self, steps: list[int]) -> list[tuple[Candidate, float]]:
        """The candidates of steps that finished and are fast enough, the best on the selection rows first."""
        limit = self._limits.latency_ms
        found = []
        for number in steps:
            for run, record in self._finished(number):
                score = selection_score(record)
                speed = record.inference.latency_ms_median if record.inference else math.inf
                if score is not None and (limit is None or speed <= limit):
                    found.append(((run.method, run.tried), score))
        return sorted(found, key=lambda one: -one[1])

    def _cost(self, candidates: Sequence[Candidate], subset: int | None, seeds: int = 1) -> float:
        """Predicts the seconds of trainings from the longest ones of the same methods on this machine."""
        known = [one for number in range(len(self._state.steps)) for one in self._finished(number)]
        rests = [rest for run, record in known if (rest := self._rest(run, record)) is not None]
        # The first runs of a process also import what the others find there.
        rest = sorted(rests)[len(rests) // 4] if rests else 0.0
        share = 1.0 if subset is None else self._rows.subsets[subset].share
        features, total = 0.0, 0.0
        for method, _ in candidates:
            name = "lora" if method == REFERENCE else method
            mine = [(run.share, record) for run, record in known if run.method == name]
            if not mine:
                continue
            before, record = max(mine, key=lambda one: one[0])
            assert record.time
            ratio = share / before
            of_scoring = 1.0 if self._rows.subsets[0].by_rows else ratio
            seconds = _training_seconds(record, ratio) + record.time.eval_seconds * of_scoring + rest
            if subset is None:
                # The first steps do not score the reported rows.
                one_scoring = record.time.eval_seconds / max(1, len(record.history))
                seconds += one_scoring * self._rows.counts["report"] / self._rows.counts["selection"]
            total += seeds * seconds
            # Computed once, for all runs that share them.
            features = max(features, (record.time.features_seconds or 0.0) * ratio)
        return total + features

    def _rest(self, run: PlannedRun, record: Record) -> float | None:
        """Seconds of a run that are neither training nor scoring nor the features of frozen layers."""
        log = self._folder.run_folder(run).log
        try:
            first = log.read_text(encoding="utf-8")[:23]
            begun = datetime.strptime(first, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
            ended = (self._folder.path / run.folder / RECORD_FILE).stat().st_mtime
        except (OSError, ValueError):
            return None
        if record.time is None or record.resumed_at_updates:
            return None
        reused = record.frozen is not None and record.frozen.reused
        features = 0.0 if reused else record.time.features_seconds or 0.0
        return max(0.0, ended - begun - record.time.train_seconds - record.time.eval_seconds - features)

    # Time.

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _end(self) -> float:
        """When the last training is to end; the answer follows."""
        seconds = self._limits.seconds
        return math.inf if seconds is None else (1 - _ANSWER_SHARE) * seconds - _ANSWER_SECONDS

    def _left(self) -> float:
        """Seconds for further trainings, without a margin for what takes longer than predicted."""
        return (1 - _MARGIN) * (self._end() - self._elapsed())

    def _keep(self) -> None:
        self._state.seconds = self._elapsed()
        self._state.keep(self._folder)

    def _why_nothing(self) -> str:
        records = [self._folder.record(run) for run in self._runs(0)]
        failed = [one for one in records if one is not None and one.status not in ("interrupted", "finished")]
        errors = [] if self._finished(0) else [record.error for record in failed]
        if errors:
            return f"No training could be made: {errors[0]}"
        if self._finished(0):
            return f"No method answers a row within --latency {self._limits.latency_ms:g}ms on this machine."
        return (
            f"In --time {self._limits.seconds:g}s no training could be ended, as {self._elapsed():.0f} s went by until "
            "here: give several minutes; the same command with more time goes on."
        )


def _training_seconds(record: Record, ratio: float) -> float:
    """Seconds of a training with so many times the updates; the first ones of each take longer."""
    assert record.time
    steps, first = record.history[-1].step, record.time.warm_up_updates
    if steps <= first:
        return record.time.train_seconds * ratio
    each = (record.time.train_seconds - record.time.warm_up_seconds) / (steps - first)
    return record.time.warm_up_seconds + each * max(0.0, ratio * steps - first)
