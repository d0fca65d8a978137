"""The search of a study: the ranges from which settings are drawn, how they are drawn, and which are tried next.

Random and quasi-random settings are drawn when the study is expanded. TPE and Hyperband need the scores of earlier
trials: Optuna's proposals are kept in a journal in the study's folder, so that every process reads the same ones.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from filelock import FileLock

from petl_bench.config import RunConfig
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.registry import get_method
from petl_bench.records.study_file import PlannedRun, SearchedCell, candidate_name, selection_score
from petl_bench.studies.folder import StudyFolder
from petl_bench.training import SEED_RANGE

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("random", "qmc", "tpe")
PRUNERS = ("none", "hyperband")

RATE = "train.learning_rate"

# A method's rates range from its default rate divided by this factor to the default rate times this factor.
_FACTOR = 10.0
# Each step of Hyperband, or of `petl-bench choose`, trains the better third of the candidates three times as long.
REDUCTION = 3
_JOURNAL = "search.journal"
_SETTING = re.compile(r"\w+\.[\w.]+")

Space = Mapping[str, Any]
# Trials by settings, as `candidate_name` returns them, and by share of the training.
Trials = Mapping[tuple[str, float], PlannedRun]


@dataclass
class SearchConfig:
    """How the settings of each method are searched for, on each task; conf/study/fair_small.yaml is an example.

    Attributes:
        trials: Number of trials, the same for every method on every task.
        space: Ranges that replace the method's own, by method: for each setting a list or `{low, high, log}`.
        sampler: random, qmc (a scrambled Sobol sequence) or tpe.
        pruner: none, or hyperband: trials that do worse than others end after a third or a ninth of the training.
        seed: Seed of the draws and of the trainings of all trials; must not be one of the study's seeds.
    """

    trials: int
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampler: str = "random"
    pruner: str = "none"
    seed: int = 1000

    # For pydantic, which reads the file: an unknown key is an error.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def is_adaptive(self) -> bool:
        """Whether a trial depends on the scores of earlier ones."""
        return self.sampler == "tpe" or self.pruner != "none"


def check_search(search: SearchConfig) -> None:
    """Raises RequestError for a value outside its range."""
    if search.trials < 1 or search.seed not in SEED_RANGE:
        raise RequestError(f"search.trials={search.trials} must be at least 1, search.seed a whole number from 0.")
    for key, value, allowed in (("sampler", search.sampler, SAMPLERS), ("pruner", search.pruner, PRUNERS)):
        if value not in allowed:
            raise unknown_choice(f"search.{key}", value, allowed)
    for method, space in search.space.items():
        for key, values in space.items():
            where = f"search.space.{method}.{key}"
            if not _SETTING.fullmatch(key):
                raise RequestError(f"{where}: {key} is no setting of a run, such as method.r or {RATE}.")
            _check_values(values, where)
    if search.is_adaptive:
        _optuna()


def _check_values(values: Any, where: str) -> None:
    if isinstance(values, list):
        if not values or not all(isinstance(value, int | float | str) for value in values):
            raise RequestError(f"{where} must list at least one number or word.")
        return
    ends: list[Any] = [values.get(key) for key in ("low", "high")] if isinstance(values, dict) else []
    is_range = len(ends) == 2 and values.keys() <= {"low", "high", "log"}
    if not is_range or not all(type(end) in (int, float) and math.isfinite(end) for end in ends):
        raise RequestError(f"{where} must be a list of values, or low and high with log: true or false.")
    low, high = ends
    if low >= high or (values.get("log") and low <= 0):
        raise RequestError(f"{where}: low must be less than high, and above 0 with log: true.")


def default_space(cfg: RunConfig, given: Collection[str] = ()) -> dict[str, Any]:
    """Returns a method's ranges: the sizes that its folder declares, and two decades of rates around its rate.

    Args:
        cfg: A run of the method; its rate is the middle of the range.
        given: Settings that already have a value; of these, only the rate is searched.
    """
    sizes = get_method(cfg.method.name).searched_sizes
    rate = cfg.train.learning_rate
    rates = {"low": rate / _FACTOR, "high": rate * _FACTOR, "log": True}
    return {name: values for name, values in sizes.items() if name not in given} | {RATE: rates}


def reports_selection_rows(cfg: RunConfig) -> bool:
    """Whether the rows that would choose a run's settings are also the reported rows."""
    return cfg.task.protocol not in ("held_out", "test")


def space_of(search: SearchConfig, method: str, task: str, cfg: RunConfig, given: Collection[str]) -> dict[str, Any]:
    """Returns the ranges that are searched for a method on a task.

    Args:
        search: The study's search.
        method: The study's name of the method.
        task: The study's name of the task.
        cfg: The run that the study would make without a search.
        given: Settings with a value in the study, which no default range replaces (see `default_space`).

    Returns:
        By setting: a list of values, or a range with its distribution.

    Raises:
        RequestError: If the rows that choose are also the reported rows, or there are too few different settings.
    """
    if reports_selection_rows(cfg):
        raise RequestError(
            f"{method} on {task}: a search chooses by the selection rows, which task.protocol={cfg.task.protocol} also "
            "reports: add task.protocol=held_out, or task.protocol=test with rows of its own for each."
        )
    space = default_space(cfg, given) | search.space.get(method, {})
    count = math.prod(_num_values(values) for values in space.values())
    if count < search.trials:
        raise RequestError(
            f"search.space.{method} holds {count} different settings, fewer than search.trials={search.trials}: widen "
            "it, or lower the number of trials of all methods."
        )
    return space


def _num_values(values: Any) -> float:
    if isinstance(values, list):
        return len(values)
    low, high = values["low"], values["high"]
    return high - low + 1 if is_integer_range(values) else math.inf


def is_integer_range(values: Mapping[str, Any]) -> bool:
    """Whether a range is one of whole numbers."""
    return type(values["low"]) is int and type(values["high"]) is int


def draw(search: SearchConfig, space: Space, method: str, task: str) -> list[dict[str, Any]]:
    """Draws distinct settings for all trials of a method on a task; more trials do not change the first ones.

    Args:
        search: The number of trials and the sampler.
        space: The ranges.
        method: The study's name of the method; draws differ between methods and between tasks.
        task: The study's name of the task.

    Returns:
        A mapping from settings to values for each trial.
    """
    drawn: list[dict[str, Any]] = []
    for point in _points(search, len(space), _seed_of(search.seed, method, task)):
        tried = {key: _value(values, position) for (key, values), position in zip(space.items(), point, strict=True)}
        if tried not in drawn:
            drawn.append(tried)
        if len(drawn) == search.trials:
            break
    return drawn


def _points(search: SearchConfig, dimensions: int, seed: int) -> Iterator[np.ndarray]:
    """Yields points of the unit cube, shape (dimensions,), endlessly."""
    if search.sampler == "qmc":
        from scipy.stats.qmc import Sobol

        sobol = Sobol(dimensions, rng=np.random.default_rng(seed))
        while True:
            yield sobol.random(1)[0]
    generator = np.random.default_rng(seed)
    while True:
        yield generator.random(dimensions)


def _value(values: Any, position: float) -> Any:
    """Returns the value at a position in [0, 1) of a list or range."""
    if isinstance(values, list):
        return values[int(position * len(values))]
    low, high = values["low"], values["high"]
    if is_integer_range(values):
        # Rounding then gives the first and the last number a full interval as well.
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** position if values.get("log") else low + (high - low) * position
    return round(value) if is_integer_range(values) else float(f"{value:.3g}")


def _seed_of(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def steps_of(search: SearchConfig, cfg: RunConfig) -> list[tuple[float, str]]:
    """Returns the successive lengths of a trial's training, as shares of the whole and as overrides.

    Raises:
        RequestError: If the pruner cannot shorten the training.
    """
    key = "epochs" if cfg.train.max_steps is None else "max_steps"
    whole: int = getattr(cfg.train, key)
    if search.pruner == "none":
        return [(1.0, f"train.{key}={whole}")]
    lengths = sorted({math.ceil(whole / REDUCTION**power) for power in range(3)})
    if len(lengths) == 1:
        raise RequestError(
            f"search.pruner={search.pruner} ends trainings early, and train.{key}={whole} has no early end: raise it."
        )
    return [(length / whole, f"train.{key}={length}") for length in lengths]


@dataclass(frozen=True)
class AskedTrial:
    """A trial that Optuna asked for.

    Attributes:
        tried: Its settings.
        num_steps: For how many of the lengths of `steps_of` it is trained, as far as known.
        is_open: Whether it has not ended.
    """

    tried: dict[str, Any]
    num_steps: int
    is_open: bool


def advance(
    search: SearchConfig, cell: SearchedCell, planned: Trials, folder: StudyFolder, *, ask: bool
) -> list[AskedTrial]:
    """Reports the ended trials of a method on a task to Optuna, and asks for the next one.

    One trial of a cell is open at a time. Processes take turns, and each reads from the journal what the others did, so
    that any of them may be killed at any time.

    Args:
        search: The number of trials, the sampler and the pruner.
        cell: The method, the task and the ranges.
        planned: The trials that are planned for them.
        folder: The study's folder, which contains the journal.
        ask: Whether to ask; False only reads the journal.

    Returns:
        All trials so far, in order.
    """
    _optuna()
    if not ask and not (folder.private / _JOURNAL).exists():
        return []
    folder.private.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.private / "search.lock"):
        _repair(folder.private / _JOURNAL)
        study = _open_study(search, cell, folder)
        if ask:
            for trial in study.get_trials(deepcopy=False):
                if not trial.state.is_finished():
                    _tell(study, trial, cell, planned, folder)
            trials = _complete_trials(study, cell)
            if len(trials) < search.trials and all(trial.state.is_finished() for trial in trials):
                _ask(study, search, cell, len(trials))
        return [_asked_trial(trial) for trial in _complete_trials(study, cell)]


def _complete_trials(study: optuna.Study, cell: SearchedCell) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials with all settings; a process may have been killed before it had written all of them."""
    return [trial for trial in study.get_trials(deepcopy=False) if len(trial.params) == len(cell.space)]


def _ask(study: optuna.Study, search: SearchConfig, cell: SearchedCell, number: int) -> None:
    if search.sampler == "tpe":
        study.ask(_distributions(cell.space))
        return
    from optuna.trial import TrialState, create_trial

    tried = draw(search, cell.space, cell.method, cell.task)[number]
    study.add_trial(create_trial(state=TrialState.RUNNING, params=tried, distributions=_distributions(cell.space)))


def _tell(
    study: optuna.Study, open_trial: optuna.trial.FrozenTrial, cell: SearchedCell, planned: Trials, folder: StudyFolder
) -> None:
    """Reports the steps of an open trial that have ended since, and closes the trial after its last step."""
    from optuna.trial import Trial, TrialState

    trial = Trial(study, open_trial._trial_id)
    candidate, scores = candidate_name(_rounded(open_trial.params)), dict(open_trial.intermediate_values)
    while len(open_trial.params) == len(cell.space):
        if len(scores) == len(cell.steps):
            study.tell(trial, scores[max(scores)])
            return
        if scores and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
        run = planned.get((candidate, cell.steps[len(scores)][0]))
        record = None if run is None or not folder.ended(run) else folder.record(run)
        if record is None:
            return
        score = selection_score(record)
        if score is None:
            break
        length = REDUCTION ** len(scores)
        trial.report(score, length)
        scores[length] = score
    study.tell(trial, state=TrialState.FAIL)


def _asked_trial(trial: optuna.trial.FrozenTrial) -> AskedTrial:
    is_open, has_failed = not trial.state.is_finished(), trial.state.name == "FAIL"
    return AskedTrial(_rounded(trial.params), len(trial.intermediate_values) + (is_open or has_failed), is_open)


def _rounded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings rounded as they are written in overrides."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in params.items()}


def _repair(journal: Path) -> None:
    """Removes an incomplete last line, left by a process that was killed while writing it."""
    if journal.exists() and not (content := journal.read_bytes()).endswith(b"\n"):
        with journal.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


class _NoLock:
    """Replaces Optuna's lock, which a killed process would leave; the lock of `advance` ends with its process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def _open_study(search: SearchConfig, cell: SearchedCell, folder: StudyFolder) -> optuna.Study:
    optuna = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder.private / _JOURNAL), lock_obj=cast("Any", _NoLock())))
    # Different ranges or lengths make a different search.
    what = [cell.method, cell.task, cell.overrides, cell.space, cell.steps, search.sampler, search.pruner, search.seed]
    name = f"{cell.method} on {cell.task} {_seed_of(*what):08x}"
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True, sampler=None, pruner=None
    )
    # The proposals depend only on the journal, not on how often processes were started.
    seed = _seed_of(search.seed, cell.method, cell.task, len(_complete_trials(study, cell)))
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, search.trials // 3))
    study.pruner = optuna.pruners.NopPruner()
    if search.pruner == "hyperband":
        study.pruner = optuna.pruners.HyperbandPruner(1, REDUCTION ** (len(cell.steps) - 1), REDUCTION)
    return study


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(values: Any) -> Any:
        """Optuna's form of a list of values, or of a range."""
        if isinstance(values, list):
            return CategoricalDistribution(values)
        kind: Any = IntDistribution if is_integer_range(values) else FloatDistribution
        return kind(values["low"], values["high"], log=bool(values.get("log")))

    return {key: distribution(values) for key, values in space.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RequestError(
            "search.sampler=tpe and search.pruner=hyperband need Optuna: pip install 'petl-bench[search]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
