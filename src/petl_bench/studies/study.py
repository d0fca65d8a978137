"""A study, top to bottom: expand it, skip what is finished, make the rest; or leave its settings to sweeps of W&B."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from petl_bench.config import resolved, run_settings
from petl_bench.errors import Interrupted, RequestError
from petl_bench.estimate.costs import cost_key
from petl_bench.estimate.plan import PlanRow, estimate_all
from petl_bench.process import atomic_write, check_folder, check_name, raise_interrupted, user_path
from petl_bench.records.study_file import PlannedCosts, PlannedRun, StudyFile, read_study
from petl_bench.settings import as_setting, given_text, own_config
from petl_bench.studies.definition import StudyConfig, StudyRequest, open_study, parse_request, study_and_overrides
from petl_bench.studies.executors import start_workers
from petl_bench.studies.expand import Basis, StudyCell, basis_is_current, compose, expand, grid, grow
from petl_bench.studies.folder import FINISHED, StudyFolder, choose_settings
from petl_bench.studies.progress import StudyProgress
from petl_bench.studies.search import RATE, default_space, is_integer_range, reports_selection_rows, space_of
from petl_bench.tasks.load import trained_labels
from petl_bench.trackers import SELECTION_SCORE

# Seconds between two checks of the workers.
_PAUSE = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """A study that was opened.

    Attributes:
        file: The plan with all its runs.
        folder: The folder of the runs.
        runs: The runs that are requested now.
        config: The definition that it was expanded from.
        request: The command's request.
        basis: What the runs' keys depend on.
    """

    file: StudyFile
    folder: StudyFolder
    runs: list[PlannedRun]
    config: StudyConfig
    request: StudyRequest
    basis: Basis

    def statuses(self) -> list[tuple[PlannedRun, str]]:
        """Returns every requested run with its status; runs with settings that were not chosen are left out."""
        self.update()
        return [(run, self.folder.status(run)) for run in self.runs if run.is_asked_for]

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the requested pairs of method and task."""
        methods, tasks = self.request.methods or self.file.methods, self.request.tasks or self.file.tasks
        return [
            (method, task)
            for method in self.file.methods
            for task in self.file.tasks
            if method in methods and task in tasks
        ]

    def update(self, *, ask: bool = False) -> None:
        """Adds the trials that a search has asked for so far, and sets which settings were chosen.

        Args:
            ask: Whether to ask for the next trials if they are due.
        """
        if self.file.search is not None and self.file.search.cells:
            grow(self.file, self.folder, self.pairs(), ask=ask)
            self.runs[:] = self.request.narrowed(self.file.runs, self.config)
        choose_settings(self.file, self.folder)


def prepare(name_or_file: str, request: StudyRequest) -> Study:
    """Opens and expands a study; nothing is written.

    Raises:
        RequestError: If the study or the request is invalid.
    """
    name, config = open_study(name_or_file)
    departures = request.departures(config)
    if departures:
        config = replace(config, deviations=[*config.deviations, f"set on the command line: {', '.join(departures)}"])
    if request.seeds is not None:
        config = replace(config, seeds=request.seeds)
    if not request.tries_settings:
        config = replace(config, search=None, learning_rates={})
    folder = StudyFolder(request.folder(name))
    stored, basis = _read(folder), folder.read_basis()
    if stored is not None and basis.get("runs") == stored.digest and basis_is_current(basis, config, request.overrides):
        file = stored
    else:
        file, basis = expand(name, config, request.overrides, folder.path)
        basis["runs"] = file.digest
        file.costs = _unchanged_costs(stored, file)
    return Study(file, folder, request.narrowed(file.runs, config), config, request, basis)


def _read(folder: StudyFolder) -> StudyFile | None:
    """Reads the study's file; None if there is none or it cannot be read, and then it is written anew."""
    try:
        return read_study(folder.path)
    except RequestError as error:
        _log.warning("%s", error)
        return None


def _unchanged_costs(stored: StudyFile | None, now: StudyFile) -> list[PlannedCosts]:
    """Returns the stored costs of the methods and tasks whose runs have not changed."""
    if stored is None:
        return []
    runs_before, runs_now = ({(run.method, run.task, run.key) for run in file.runs} for file in (stored, now))
    changed = {(method, task) for method, task, _ in runs_before ^ runs_now}
    return [cost for cost in stored.costs if (cost.method, cost.task) not in changed]


def keep(study: Study) -> None:
    """Writes `study.json` if the study differs from the stored one.

    Raises:
        RequestError: If the folder is not writable.
    """
    try:
        if _read(study.folder) != study.file:
            study.file.write(study.folder.path)
        if study.folder.read_basis() != study.basis:
            study.folder.write_basis(study.basis)
    except OSError as error:
        raise RequestError(
            f"runs_dir={study.folder.path}: the study cannot be kept there ({error}): give another folder."
        ) from error


def keep_costs(study: Study, costs: list[PlannedCosts]) -> None:
    """Adds the costs to `study.json`."""
    counted = {(cost.method, cost.task) for cost in costs}
    study.file.costs = [cost for cost in study.file.costs if (cost.method, cost.task) not in counted] + costs
    keep(study)


def plan_costs(study: Study) -> list[PlannedCosts]:
    """Computes the parameters and peak memory of the requested methods and tasks, before any run.

    The costs of cells that cost the same are computed once.
    """
    pairs = study.pairs()
    configs = {
        (cell.method, cell.task): resolved(compose(cell, study.folder.path))
        for cell in grid(study.config, study.request.overrides)
        if (cell.method, cell.task) in pairs
    }
    keys = {pair: cost_key(cfg, cfg.layers, trained_labels(cfg.task)) for pair, cfg in configs.items()}
    distinct = {keys[pair]: cfg for pair, cfg in configs.items()}
    _log.info("counting costs: %d methods and tasks, of which %d differ", len(configs), len(distinct))
    counted = dict(zip(distinct, estimate_all([(cfg, None) for cfg in distinct.values()]), strict=True))
    return [_planned_costs(*pair, counted[keys[pair]]) for pair in configs]


def _planned_costs(method: str, task: str, row: PlanRow | Exception) -> PlannedCosts:
    if not isinstance(row, PlanRow):
        return PlannedCosts(method, task, note=str(row))
    assert row.params
    assert row.estimate
    return PlannedCosts(
        method=method,
        task=task,
        trainable_method=row.params.trainable_method,
        trainable_head=row.params.trainable_head,
        trainable_share_of_backbone_percent=row.params.trainable_share_of_backbone_percent,
        peak_bytes=row.estimate.peak_bytes,
        note=row.note,
        batch_size=row.estimate.batch_size,
    )


def run_study(study: Study, *, retry_failed: bool = False) -> list[PlannedRun]:
    """Makes the remaining runs of a study.

    Args:
        study: The study from `prepare`.
        retry_failed: Whether to make failed runs again.

    Returns:
        The runs that are not finished: failed ones, and ones that could not be made.

    Raises:
        RequestError: If the folder of the rows does not exist; nothing is written.
        RunError: If workers cannot work at all.
        Interrupted: On Ctrl-C or SIGTERM, after the workers have stopped.
    """
    _check_data(study)
    study.update(ask=True)
    keep(study)
    for run in study.runs:
        if retry_failed:
            study.folder.set_aside(run)
        if study.folder.run_folder(run).has_leftovers and study.folder.ended(run):
            study.folder.tidy(run)
    study.update(ask=True)
    left = _left(study)
    if left:
        _make(study, left)
        # Stores the chosen settings, unless another study was started here in the meantime.
        if (stored := _read(study.folder)) is not None and stored.digest == study.file.digest:
            keep(study)
    study.folder.remove_abandoned()
    return [run for run, status in study.statuses() if status != FINISHED and run.chosen is not False]


def _check_data(study: Study) -> None:
    """Raises RequestError once for a missing folder of rows, which would make every remaining run fail."""
    overrides = (override for run, status in study.statuses() if status != FINISHED for override in run.overrides)
    for override in dict.fromkeys(override for override in overrides if override.startswith("data_root=")):
        root = given_text(override)
        if root != "null":
            check_folder(user_path(root, "data_root"), "data_root")


def _make(study: Study, left: list[PlannedRun]) -> None:
    plan = study.folder.write_plan(study.file)
    with _sigterm_raises(), StudyProgress(study.runs, study.folder) as progress:
        workers = start_workers(study.request.executor, study.folder, plan, left)
        try:
            while workers.alive():
                study.update()
                progress.update()
                time.sleep(_PAUSE)
        except BaseException as error:
            workers.stop(error.signum if isinstance(error, Interrupted) else signal.SIGINT)
            raise
        study.update()


def _left(study: Study) -> list[PlannedRun]:
    return [run for run in study.runs if run.is_asked_for and not study.folder.ended(run)]


# Default number of runs of a sweep that draws settings: without a limit, W&B would never end the sweep.
_SWEEP_RUNS = 12

# W&B replaces this with the drawn settings, as key=value.
_DRAWN = "${args_no_hyphens}"


def write_sweeps(arguments: list[str], runs: int | None, out: str | None, write: Callable[[str], None]) -> None:
    """Writes the files of sweeps, or prints a single one.

    Args:
        arguments: See `sweeps`.
        runs: See `sweeps`.
        out: Folder of the files; None: a single one is printed.
        write: Prints the file's text, or the commands that start the sweeps.

    Raises:
        RequestError: See `sweeps`; also if there are several sweeps and no folder for them.
    """
    if runs is not None and runs < 1:
        raise RequestError(f"--runs={runs} must be at least 1.")
    contents = sweeps(arguments, runs)
    texts = {name: yaml.safe_dump(content, sort_keys=False, width=1000) for name, content in contents.items()}
    if out is None and len(texts) > 1:
        raise RequestError(f"These are {len(texts)} sweeps, a file for each method and task: add --out DIR.")
    for name, text in texts.items():
        if out is None:
            write(text.rstrip())
            continue
        file = user_path(out, "--out") / f"{name}.yaml"
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")
        write(f"wandb sweep {file}")


def sweeps(arguments: list[str], runs: int | None) -> dict[str, dict[str, Any]]:
    """The sweeps of Weights & Biases that search the settings of each method on each task.

    Args:
        arguments: A study's name and settings, or task=NAMES and method=NAMES with settings.
        runs: Number of runs of each sweep; None: the number of trials of the study's search, else `_SWEEP_RUNS`.

    Returns:
        The content of each file, by name.

    Raises:
        RequestError: If the arguments name neither a study nor tasks and methods, or settings do not compose.
    """
    if any("=" not in argument and not argument.startswith("~") for argument in arguments):
        name, overrides = study_and_overrides(arguments)
        name, config = open_study(name)
    else:
        names = {key: argument.partition("=")[2].split(",") for key in ("method", "task") for argument in arguments
                 if argument.startswith(f"{key}=")}  # fmt: skip
        if len(names) < 2:
            raise RequestError("petl-bench sweep takes the name of a study, or task=NAMES and method=NAMES.")
        overrides = [argument for argument in arguments if not argument.startswith(("method=", "task="))]
        name = ""
        config = StudyConfig(
            methods={method: [] for method in names["method"]}, tasks={task: [] for task in names["task"]}
        )
    request = parse_request(overrides)
    folder = request.folder(name) if name else Path(request.runs_dir or "runs").expanduser()
    contents = {}
    for cell in grid(config, request.overrides):
        if cell.method in (request.methods or config.methods) and cell.task in (request.tasks or config.tasks):
            title = "-".join(filter(None, (name, cell.task, cell.method)))
            check_name("The name of a sweep", title)
            contents[title] = {"name": title} | _sweep(cell, config, folder.absolute(), runs)
    return contents


def _sweep(cell: StudyCell, study: StudyConfig, folder: Path, runs: int | None) -> dict[str, Any]:
    cfg, search = compose(cell, folder), study.search
    given = {override.lstrip("+~").partition("=")[0]: override for override in cell.overrides}
    if reports_selection_rows(cfg):
        _log.warning(
            "%s: the rows by which the sweep chooses are those that are reported: task.protocol=held_out keeps them "
            "apart",
            cell.task,
        )
    if cell.method in study.learning_rates:
        space: Mapping[str, Any] = {RATE: study.learning_rates[cell.method]}
    elif search is not None:
        space = space_of(search, cell.method, cell.task, cfg, given)
    else:
        space = default_space(cfg, given)
    is_grid = all(isinstance(values, list) for values in space.values())
    paths = {option.name for option in run_settings() if option.is_path}
    fixed = [
        _absolute(override, key) if key in paths else override for key, override in given.items() if key not in space
    ]
    config_dir = own_config()
    return {
        "method": "grid" if is_grid else "bayes" if search is not None and search.sampler == "tpe" else "random",
        **({} if is_grid else {"run_cap": runs or (search.trials if search is not None else _SWEEP_RUNS)}),
        # The primary metric on the selection split.
        "metric": {"name": SELECTION_SCORE, "goal": "maximize"},
        # W&B waits for every run of a sweep, so runs that already exist are made again.
        "command": [
            *(
                "petl-bench",
                "run",
                *([] if config_dir is None else ["--config-dir", str(config_dir)]),
                "--force",
                "tracker=wandb",
            ),
            *(override for override in fixed if not override.startswith(("runs_dir=", "tracker="))),
            f"runs_dir={folder}",
            _DRAWN,
        ],
        "parameters": {key: _drawn(values) for key, values in space.items()},
    }


def _absolute(override: str, key: str) -> str:
    """Returns a setting with an absolute path, so that the command can be run in any folder."""
    value = given_text(override)
    is_name = value in ("", "null") or any(option.name == key and value in option.choices for option in run_settings())
    return override if is_name else as_setting(key, str(user_path(value, key).absolute()))


def _drawn(values: Any) -> dict[str, Any]:
    """Returns a range in W&B's format."""
    if isinstance(values, list):
        return {"values": values}
    is_integer = is_integer_range(values)
    if not values.get("log"):
        distribution: dict[str, Any] = {"distribution": "int_uniform" if is_integer else "uniform"}
    elif is_integer:
        distribution = {"distribution": "q_log_uniform_values", "q": 1}
    else:
        distribution = {"distribution": "log_uniform_values"}
    return distribution | {"min": values["low"], "max": values["high"]}


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
