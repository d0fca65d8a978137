"""The parts of a choice of a method: its limits, its decisions so far, and predictions of how long trainings take."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from petl_bench.config import RunConfig, load_config, resolved
from petl_bench.errors import RequestError
from petl_bench.estimate.plan import PlanRow, estimate_all
from petl_bench.records.schema import Record
from petl_bench.records.store import RECORD_FILE, read_json, write_json
from petl_bench.records.study_file import PlannedRun, StudyFile, read_study
from petl_bench.studies.choice_rows import ChoiceRows
from petl_bench.studies.expand import last_of_each_key
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.search import RATE, default_space

# The tables' name for LoRA as it would be run without a choice.
REFERENCE = "lora at its default"

# The setting for what a head that classifies rows reads.
POOLING = "backbone.pooling"

# The seeds of the reported trainings, and the seed of the trainings that choose.
SEEDS = [0, 1, 2]
TRIAL_SEED = 1000

# A method, or REFERENCE, with the settings that are tried.
Candidate = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """The limits that the chosen method must meet; None: no limit.

    Attributes:
        memory_bytes: Estimated memory of one update.
        seconds: Duration of the whole command.
        latency_ms: Median latency of one row.
        trainable: Number of trainable parameters, including the head's.
        trainable_percent: The same as a share of the backbone's parameters.
    """

    memory_bytes: int | None = None
    seconds: float | None = None
    latency_ms: float | None = None
    trainable: int | None = None
    trainable_percent: float | None = None

    def exceeded_by(self, row: PlanRow | Exception) -> str | None:
        """Returns why a method exceeds the limits that can be checked before any run; None if it meets them."""
        if not isinstance(row, PlanRow):
            return str(row)
        assert row.estimate
        assert row.params
        share = row.params.trainable_share_of_backbone_percent
        if self.memory_bytes is not None and row.estimate.peak_bytes > self.memory_bytes:
            return f"{row.estimate.peak_bytes / 2**20:,.0f} MiB an update"
        if self.trainable is not None and row.params.trainable > self.trainable:
            return f"{row.params.trainable:,} parameters"
        if self.trainable_percent is not None and share > self.trainable_percent:
            return f"{share:.2f} % of the backbone's parameters"
        return None

    def left_out(self, candidates: Sequence[Candidate], overrides: list[str]) -> dict[str, str]:
        """Finds the sizes that exceed the limits or cannot be run; nothing is trained.

        Args:
            candidates: Methods with settings; those that differ only in the learning rate cost the same.
            overrides: Settings of every run.

        Returns:
            The reason for each, by `size_name`.
        """
        configs: dict[str, RunConfig] = {}
        reasons: dict[str, str] = {}
        for candidate in candidates:
            name = size_name(candidate)
            if name in configs or name in reasons:
                continue
            try:
                configs[name] = resolved(load_config(candidate_settings(candidate, overrides)))
            except RequestError as error:
                reasons[name] = str(error)
        if configs and self._concern_sizes:
            rows = estimate_all([(cfg, None) for cfg in configs.values()])
            exceeded = {name: self.exceeded_by(row) for name, row in zip(configs, rows, strict=True)}
            reasons |= {name: reason for name, reason in exceeded.items() if reason is not None}
        return reasons

    def is_fast_enough(self, *records: Record) -> bool:
        """Whether the median latencies of these runs meet the limit."""
        speeds = [record.inference.latency_ms_median if record.inference else math.inf for record in records]
        return self.latency_ms is None or max(speeds) <= self.latency_ms

    @property
    def _concern_sizes(self) -> bool:
        return any(limit is not None for limit in (self.memory_bytes, self.trainable, self.trainable_percent))

    def fitting_space(self, method: str, overrides: list[str]) -> dict[str, Any]:
        """Returns a method's ranges, without the sizes that exceed the limits on their own."""
        space = default_space(load_config([*overrides, f"method={method}"]))
        if self._concern_sizes:
            for key in space.keys() - {RATE}:
                too_large = self.left_out([(method, {key: value}) for value in space[key]], overrides)
                space[key] = [value for value in space[key] if size_name((method, {key: value})) not in too_large]
        # A size of which only the default keeps to the limits is not drawn.
        return {key: values for key, values in space.items() if values}

    def nearest_size(self, method: str, overrides: list[str]) -> dict[str, Any]:
        """Returns the size nearest to a method's default that keeps to the limits; an empty dict if there is none."""
        default = load_config([*overrides, f"method={method}"]).to_dict()["method"]
        for key, values in self.fitting_space(method, overrides).items():
            if key != RATE:
                return {key: min(values, key=lambda value: abs(math.log(value / default[key.partition(".")[2]])))}
        return {}


def candidate_settings(candidate: Candidate, overrides: list[str]) -> list[str]:
    """Returns the overrides of a candidate's runs."""
    method, tried = candidate
    name = "lora" if method == REFERENCE else method
    return [*overrides, f"method={name}", *(f"{key}={value}" for key, value in tried.items())]


def size_name(candidate: Candidate) -> str:
    """Names a method with its size, as in `lora, r=8`."""
    method, tried = candidate
    return ", ".join([method, *(f"{key.rpartition('.')[2]}={value}" for key, value in tried.items() if key != RATE)])


def with_poolings(candidate: Candidate, overrides: list[str]) -> list[Candidate]:
    """Returns a candidate and, if its head reads the first token, the same one with a head that reads the mean."""
    cfg = load_config(candidate_settings(candidate, overrides))
    # Architectures that have this setting already read the mean.
    is_open = cfg.backbone.pooling is None and "classifier_pooling" not in cfg.backbone.architecture
    method, tried = candidate
    others = [(method, tried | {POOLING: "mean"})] if is_open and cfg.task.type != "tagging" else []
    return [candidate, *others]


# The numbers of the first steps. The steps that halve the candidates follow, then the steps on all rows.
HEAD_STEP, DEFAULTS_STEP, SETTINGS_STEP = range(3)


@dataclass
class Step:
    """One step of the halving.

    Attributes:
        subset: Index of the subset of the rows that its runs see; None: all rows, with the seeds that are reported.
        candidates: The candidates that it trains.
        seeds: The seeds of the trainings.
        share: Length of a training on all rows as a share of a whole one; below 1 if time does not suffice for more.
        begun: When it was decided, in seconds since the choice began.
    """

    subset: int | None
    candidates: list[Candidate]
    seeds: list[int]
    share: float = 1.0
    begun: float = 0.0


@dataclass
class ChoiceState:
    """The decisions so far, in the order in which they are made; stored in the study's folder.

    Attributes:
        request: The request; a different request is a different choice.
        left_out: Why methods are not among the candidates.
        sizes: The sizes of methods whose default exceeds the limits.
        decided: Whether `left_out` and `sizes` are known.
        pooling: The setting with which heads read the mean of the tokens, if that was better.
        first: Index of the subset on which the methods are trained at their defaults; None: not decided yet.
        settings: How many settings of each method are tried; None: not decided yet.
        finalists: How many methods are trained on all rows.
        limit: The time limit in seconds for which these decisions were made; None: no limit.
        seconds: How long the choice has taken so far, over all commands.
    """

    request: list[Any]
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    decided: bool = False
    pooling: dict[str, str] = field(default_factory=dict)
    first: int | None = None
    settings: int | None = None
    finalists: int = 0
    steps: list[Step] = field(default_factory=list)
    limit: float | None = None
    seconds: float = 0.0

    def allow(self, seconds: float | None) -> None:
        """Sets the time limit; if it is higher than before, the steps are decided anew, and trained runs are kept."""
        if self.limit is not None and (seconds is None or seconds > self.limit):
            self.steps, self.pooling, self.first, self.settings = [], {}, None, None
        self.limit = seconds

    def keep(self, folder: StudyFolder) -> None:
        """Writes the state to the study's folder."""
        write_json(folder.private / _STATE_FILE, asdict(self))


_STATE_FILE = "choice.json"


def read_state(folder: StudyFolder, request: list[Any]) -> ChoiceState:
    """Reads what was decided before for the same request; returns an empty state for a new folder.

    Raises:
        RequestError: If the folder holds something else.
    """
    elsewhere = "give another folder with runs_dir=DIR, or delete this one"
    file = folder.private / _STATE_FILE
    if not file.is_file():
        if read_study(folder.path) is not None:
            raise RequestError(f"{folder.path} holds a study: {elsewhere}.")
        return ChoiceState(request)
    try:
        content = read_json(file)
        steps = [Step(**step | {"candidates": list(map(tuple, step["candidates"]))}) for step in content["steps"]]
        state = ChoiceState(**content | {"steps": steps})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{file} cannot be read ({error}): {elsewhere}.") from error
    if differences := _differences(state.request, json.loads(json.dumps(request))):
        raise RequestError(f"{folder.path} holds a choice that differs in {'; '.join(differences)}: {elsewhere}.")
    return state


def _differences(before: list[Any], now: list[Any]) -> list[str]:
    """Describes how two requests differ."""
    differences = []
    for what, old, new in zip(("settings", "methods"), before[:2], now[:2], strict=True):
        parts = []
        if gone := [item for item in old if item not in new]:
            parts.append(f"it had {' '.join(gone)}")
        if added := [item for item in new if item not in old]:
            parts.append(f"now {' '.join(added)}")
        if parts:
            differences.append(f"its {what} ({', '.join(parts)})")
    limits = [name for name in before[2] | now[2] if before[2].get(name) != now[2].get(name)]
    differences += [f"the limit {name} ({before[2].get(name)}, now {now[2].get(name)})" for name in limits]
    if not differences and before[3] != now[3]:
        differences.append("its rows")
    return differences


@dataclass(frozen=True)
class Choice:
    """A completed choice: the study in its folder, and the decisions made on the way."""

    study: StudyFile
    folder: StudyFolder
    state: ChoiceState
    limits: Limits
    rows: ChoiceRows
    overrides: list[str]

    def record(self, run: PlannedRun) -> Record | None:
        """Returns a run's record if it finished, else None."""
        return record if (record := self.folder.record(run)) and record.status == "finished" else None

    def command(self, run: PlannedRun) -> list[str]:
        """Returns the arguments of the command that trains a run's settings on all rows for the full length."""
        seed = SEEDS[0] if run.is_trial else run.seed
        settings = [*candidate_settings((run.method, run.tried), self.overrides), f"train.seed={seed}"]
        return ["petl-bench", "run", *last_of_each_key(settings)]

    @property
    def trained(self) -> list[PlannedRun]:
        """The runs that finished."""
        return [run for run in self.study.runs if self.record(run) is not None]

    @property
    def failed(self) -> dict[str, str]:
        """The methods that failed before any of their runs finished, each with its last error."""
        finished = {run.method for run in self.trained}
        records = {run.method: self.folder.record(run) for run in self.study.runs if run.method not in finished}
        return {name: record.error for name, record in records.items() if record is not None and record.error}

    @property
    def failed_on_all_rows(self) -> str | None:
        """The error of a training on all rows, if all of them failed; None if one finished or none was made."""
        records = [record for run in self.study.runs if not run.is_trial and (record := self.folder.record(run))]
        errors = [record.error for record in records if record.status != "finished"]
        return errors[0] if errors and len(errors) == len(records) else None

    @property
    def not_trained(self) -> list[str]:
        """The methods that meet the limits but were not trained for lack of time."""
        tried = {run.method for run in self.trained} | set(self.failed)
        return [name for name, _ in self.state.steps[DEFAULTS_STEP].candidates if name not in tried]


class Durations:
    """Predicts durations from finished trainings, using the longest one of each method.

    Args:
        folder: The study's folder.
        rows: The rows that its runs see.
        finished: The runs that finished, with their records.
    """

    def __init__(self, folder: StudyFolder, rows: ChoiceRows, finished: Sequence[tuple[PlannedRun, Record]]) -> None:
        self._rows, self._finished = rows, finished
        rests = sorted(rest for run, record in finished if (rest := _rest_seconds(folder, run, record)) is not None)
        # The lower quartile, because the first runs of a process also import packages for the later ones.
        self._rest = rests[len(rests) // 4] if rests else 0.0

    def predict(self, candidates: Sequence[Candidate], share: float, seeds: int = 1, *, reports: bool = False) -> float:
        """Predicts the total seconds of trainings that are made one after the other.

        Args:
            candidates: The candidates to train; a method that was not trained yet is assumed to take as long as LoRA,
                or as long as the slowest method if LoRA was not trained either.
            share: Length of each training as a share of a whole one.
            seeds: Number of seeds of each candidate.
            reports: Whether the reported rows are scored as well.

        Returns:
            Seconds; 0 if nothing was trained yet.
        """
        features, total = 0.0, 0.0
        counts, by_rows = self._rows.counts, self._rows.subsets[0].by_rows
        # Features are computed once for all runs that read them; of the same rows, only the report's are new.
        of_report = counts["report"] / (counts["train"] + counts["selection"]) if reports else 0.0
        for method, _ in candidates:
            longest = self._longest("lora" if method == REFERENCE else method)
            if longest is None:
                alike = [self.predict([(other, {})], share, reports=reports) for other in self._alike()]
                total += seeds * max(alike, default=0.0)
                continue
            longest_share, record = longest
            assert record.time
            ratio = share / longest_share
            of_scoring = 1.0 if by_rows else ratio
            seconds = _training_seconds(record, ratio) + record.time.eval_seconds * of_scoring + self._rest
            if reports:
                one_scoring = record.time.eval_seconds / max(1, len(record.history))
                seconds += one_scoring * counts["report"] / counts["selection"]
            total += seeds * seconds
            features = max(features, (record.time.features_seconds or 0.0) * (ratio if by_rows else of_report))
        return total + features

    def _longest(self, method: str) -> tuple[float, Record] | None:
        """Returns the longest training of a method, with its share of a whole one; None if there is none."""
        of_method = ((float(run.share), record) for run, record in self._finished if run.method == method)
        return max(of_method, key=lambda training: training[0], default=None)

    def _alike(self) -> list[str]:
        methods = {run.method for run, _ in self._finished} - {REFERENCE}
        return ["lora"] if "lora" in methods else sorted(methods)


def _rest_seconds(folder: StudyFolder, run: PlannedRun, record: Record) -> float | None:
    """Returns the seconds of a run that are neither training nor scoring nor the features of frozen layers."""
    try:
        first = folder.run_folder(run).log.read_text(encoding="utf-8")[:23]
        begun = datetime.strptime(first, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        ended = (folder.path / run.folder / RECORD_FILE).stat().st_mtime
    except (OSError, ValueError):
        return None
    if record.time is None or record.resumed_at_updates:
        return None
    reused = record.frozen is not None and record.frozen.reused
    features = 0.0 if reused else record.time.features_seconds or 0.0
    return max(0.0, ended - begun - record.time.train_seconds - record.time.eval_seconds - features)


def _training_seconds(record: Record, ratio: float) -> float:
    """Predicts the seconds of a training with `ratio` times the updates; the first updates of each take longer."""
    assert record.time
    updates, first = record.history[-1].step, record.time.warm_up_updates
    if updates <= first:
        return record.time.train_seconds * ratio
    each = (record.time.train_seconds - record.time.warm_up_seconds) / (updates - first)
    return record.time.warm_up_seconds + each * max(0.0, ratio * updates - first)


def why_nothing(records: Sequence[Record | None], limits: Limits, seconds: float) -> str:
    """Says why none of the first trainings (None: not begun) gave a method to choose in the seconds that it took."""
    ended = [record for record in records if record is not None and record.status != "interrupted"]
    if ended and all(record.status != "finished" for record in ended):
        return f"No training could be made: {ended[0].error}"
    if ended:
        return f"No method answers a row within --latency {limits.latency_ms:g}ms on this machine."
    return (
        f"No training could finish within --time {limits.seconds:g}s, as {seconds:.0f} s have been used already: give "
        "several minutes; the same command with more time goes on."
    )
