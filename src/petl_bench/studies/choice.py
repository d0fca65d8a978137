"""The parts of a choice of a method: its limits, its decisions so far, and what can be trained in the time left."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from petl_bench.config import RunConfig, load_config, resolved
from petl_bench.errors import RequestError
from petl_bench.estimate.plan import PlanRow, estimate_all
from petl_bench.records.schema import Record
from petl_bench.records.store import read_json, write_json
from petl_bench.records.study_file import PlannedRun, StudyFile, read_study
from petl_bench.studies.choice_trainings import REFERENCE, Candidate, ChoiceRows, Durations, Subset
from petl_bench.studies.expand import last_of_each_key
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.search import RATE, REDUCTION, default_space

_log = logging.getLogger(__name__)

# The setting for what a head that classifies rows reads.
POOLING = "backbone.pooling"

# The seeds of the reported trainings, and the seed of the trainings that choose.
SEEDS = [0, 1, 2]
TRIAL_SEED = 1000


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
        settings: How many settings of a method are tried; None: not decided yet.
        searched: Of how many of the methods, the best at their defaults; 0: of all.
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
    searched: int = 0
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


# After fewer updates, the order of methods and rates is often not that after a whole training (docs/choose.md).
_ENOUGH_UPDATES = 100


def first_subset(
    candidates: list[Candidate], subsets: list[Subset], updates: float, durations: Durations, left: float
) -> int:
    """Finds the first trainings of all methods: the shortest that say enough about them, if time allows.

    Args:
        candidates: The methods at their defaults.
        subsets: What a training may see, and for how long, the least first.
        updates: The number of updates of a whole training; 0 if nothing was trained yet.
        durations: Predicts how long trainings take.
        left: The seconds left; infinite without a limit.

    Returns:
        The index of a subset. Unless it is 0, the time also suffices for a second setting of three methods, and for
        the best and LoRA at its default on all rows.
    """
    # A part of many rows gives enough updates.
    if subsets[0].by_rows or not updates:
        return 0
    enough = (index for index, subset in enumerate(subsets) if subset.share * updates >= _ENOUGH_UPDATES)
    last = 2 * durations.predict(candidates[:1], 1.0, reports=True)
    for index in range(next(enough, len(subsets) - 1), 0, -1):
        share = subsets[index].share
        further = 3 * durations.predict(candidates[:1], share)
        if durations.predict(candidates, share) + further + last < left:
            return index
    return 0


# How many settings are tried of how many of the methods (0: of all), how many of the best are trained on all rows, and
# with how many seeds: the plans for a given time, in order of preference, and the plan without a time limit. A further
# rate is worth more than a further method in the last step.
_PLANS = (
    *((8, 0, 3, 3), (6, 0, 3, 3), (5, 0, 3, 3), (4, 0, 3, 3), (4, 3, 3, 3), (4, 3, 2, 3), (4, 3, 3, 1), (4, 3, 2, 1)),
    *((3, 3, 2, 1), (2, 3, 2, 1), (3, 3, 1, 1), (2, 3, 1, 1), (2, 2, 1, 1), (1, 0, 2, 1), (2, 1, 1, 1), (1, 0, 1, 1)),
)
_WITHOUT_TIME = (4, 0, 3)


def affordable(tried: list[Candidate], shares: list[float], durations: Durations, left: float) -> tuple[int, int, int]:
    """Finds the most thorough search that time allows.

    Args:
        tried: The methods as they were trained so far, the best first.
        shares: The lengths of the trainings that choose, as shares of a whole one, the first step's first.
        durations: Predicts how long trainings take.
        left: The seconds left; infinite without a limit.

    Returns:
        The number of settings of a method, the number of methods that get them (0: all), and the number of methods that
        are trained on all rows.
    """
    if left == math.inf:
        return _WITHOUT_TIME
    for settings, searched, finalists, seeds in _PLANS:
        # Most of what is trained later are settings of the methods that were searched.
        likely = tried[: searched or None]
        further = (settings - 1) * likely
        seconds = durations.predict(further, shares[0])
        for halved, share in enumerate(shares[1:], start=1):
            number = math.ceil((len(tried) + len(further)) / REDUCTION**halved)
            seconds += number * durations.predict(likely, share) / len(likely)
        # The last trainings are those of the finalists and of LoRA at its default.
        number = seeds * (min(finalists, len(tried)) + 1)
        seconds += number * durations.predict(likely, 1.0, reports=True) / len(likely)
        if seconds < left:
            plan = "%d settings of the %d best, then the %d best on all rows; seeds: %d; about %.0f s"
            _log.info(plan, settings, len(likely), finalists, seeds, seconds)
            return settings, searched, finalists
    return 1, 0, 1
