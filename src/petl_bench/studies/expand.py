"""Turns a study into its runs: every method on every task, with all settings that are tried, with every seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from petl_bench import __version__
from petl_bench.config import RunConfig, load_config
from petl_bench.errors import RequestError
from petl_bench.process import file_sha256, gpu_may_be_there, without_home
from petl_bench.records.study_file import PlannedRun, SearchedCell, SearchPlan, StudyFile, candidate_name
from petl_bench.run.lifecycle import identify, local_files
from petl_bench.settings import CONFIG_MODULE, own_config
from petl_bench.studies.definition import StudyConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.search import RATE, SearchConfig, advance, draw, space_of, steps_of
from petl_bench.tasks.table_files import parquet_files

# What a study's keys depend on: a fingerprint of settings and program, and the state of each local file.
Basis = dict[str, Any]

_KEY = re.compile(r"[+~]*([\w./@]+)")


@dataclass(frozen=True)
class StudyCell:
    """One method on one task with one choice of settings; its runs differ only in the seed.

    Attributes:
        overrides: `petl-bench run` with these and a seed makes one of its runs.
        tried: The settings that are compared with others, by name; empty if the study compares none.
    """

    method: str
    task: str
    overrides: list[str]
    tried: dict[str, Any] = field(default_factory=dict)

    @property
    def candidate(self) -> str:
        """The name of the settings that are tried."""
        return candidate_name(self.tried)


def expand(name: str, study: StudyConfig, overrides: list[str], folder: Path) -> tuple[StudyFile, Basis]:
    """Lists all runs of a study with their keys, and what the keys depend on.

    Args:
        name: The study's name.
        study: The study's definition.
        overrides: Settings from the command line, which take precedence over the study's.
        folder: The folder of its runs.

    Returns:
        The plan as it is stored in `study.json`, and what its keys were made from.

    Raises:
        RequestError: If settings do not compose, or two runs are the same.
    """
    runs: list[PlannedRun] = []
    inputs: dict[str, list[int | str]] = {}
    fingerprint = _fingerprint(study, overrides)
    trial_seeds = _trial_seeds(study)
    for cell in grid(study, overrides):
        cfg = compose(cell, folder)
        local = local_files(cfg).values()
        inputs |= {str(path): _state(path) for file in local for path in (file, file.parent)}
    for cell in cells(study, overrides):
        runs += planned_runs(cell, compose(cell, folder), study.seeds, trial_seeds)
    _check_distinct(runs)
    expanded = StudyFile(
        name=name,
        description=study.description,
        methods=list(study.methods),
        tasks=list(study.tasks),
        seeds=list(study.seeds),
        runs=runs,
        deviations=study.deviations,
        published=study.published,
        claims=study.claims,
        search=_search_plan(study, overrides),
    )
    return expanded, {"fingerprint": fingerprint, "inputs": inputs}


def planned_runs(cell: StudyCell, cfg: RunConfig, seeds: list[int], trial_seeds: list[int]) -> list[PlannedRun]:
    """Lists the runs of a cell: the trials of its settings, and the runs that are reported if these are chosen.

    Args:
        cell: The cell.
        cfg: Its config, as `compose` returns it.
        seeds: The seeds of the reported runs.
        trial_seeds: The seeds of the trials; they may be among `seeds`.

    Returns:
        A run for each seed; those that are only trials come first.
    """
    planned = []
    only_trials = [seed for seed in trial_seeds if seed not in seeds] if cell.tried else []
    for seed in [*only_trials, *seeds]:
        identity = identify(replace(cfg, train=replace(cfg.train, seed=seed)))
        overrides = [*map(_without_home, cell.overrides), f"train.seed={seed}"]
        is_reported = seed in seeds
        planned.append(
            PlannedRun(
                *(cell.method, cell.task, seed, identity.key, identity.folder.name),
                overrides=overrides if is_reported else last_of_each_key([*overrides, "train.save_weights=false"]),
                learning_rate=cell.tried.get(RATE),
                is_trial=bool(cell.tried) and seed in trial_seeds,
                chosen=(None if cell.tried else True) if is_reported else False,
                cache=cfg.train.cache,
                tried=cell.tried,
            )
        )
    return planned


def grow(study: StudyFile, folder: StudyFolder, pairs: Collection[tuple[str, str]] = (), *, ask: bool = True) -> None:
    """Adds the runs that an adaptive search has asked for so far; none if all trials are known from the start.

    Args:
        study: The study to which runs are added.
        folder: The folder with the search's journal.
        pairs: The methods and tasks whose next trial is asked for if it is due.
        ask: Whether to ask; False only reads what was asked for.

    Raises:
        RequestError: If Optuna is missing, or settings that were drawn do not compose.
    """
    if study.search is None:
        return
    plan = study.search
    search = SearchConfig(plan.trials, sampler=plan.sampler, pruner=plan.pruner, seed=plan.seed)
    for cell in plan.cells:
        is_due = ask and (cell.method, cell.task) in pairs
        trials = _grow_cell(cell, study, search, folder, ask=is_due)
        # A new process may find trials that have already ended: then the next ones are due as well.
        while is_due and any(folder.ended(run) for run in trials):
            trials = _grow_cell(cell, study, search, folder, ask=True)


def _grow_cell(
    cell: SearchedCell, study: StudyFile, search: SearchConfig, folder: StudyFolder, *, ask: bool
) -> list[PlannedRun]:
    """Adds the runs of a cell that were asked for so far; returns the added trials."""
    pair = (cell.method, cell.task)
    known = {(run.candidate, run.share): run for run in study.runs if run.is_trial and (run.method, run.task) == pair}
    trials = advance(search, cell, known, folder, ask=ask)
    cell.is_open = len(trials) < search.trials or any(trial.is_open for trial in trials)
    plain, added = StudyCell(cell.method, cell.task, cell.overrides), list[PlannedRun]()
    for trial in trials:
        whole = _with(plain, trial.tried, cell.last)
        for share, length in cell.steps[: trial.num_steps]:
            if (whole.candidate, share) in known:
                continue
            step = replace(whole, overrides=last_of_each_key([*whole.overrides, length]))
            seeds = study.seeds if (share, length) == tuple(cell.steps[-1]) else []
            planned = planned_runs(step, compose(step, folder.path), seeds, [search.seed])
            runs = [replace(run, share=share) for run in planned]
            known |= {(run.candidate, run.share): run for run in runs if run.is_trial}
            added += [run for run in runs if run.is_trial]
            study.runs += runs
    return added


def _search_plan(study: StudyConfig, overrides: list[str]) -> SearchPlan | None:
    search = study.search
    if search is None:
        return None
    plan = SearchPlan(search.trials, search.sampler, search.pruner, search.seed)
    for cell in grid(study, overrides) if search.is_adaptive else ():
        cfg, space = compose(cell, Path()), _space(study, cell)
        plan.cells.append(SearchedCell(cell.method, cell.task, cell.overrides, overrides, space, steps_of(search, cfg)))
    return plan


def basis_is_current(basis: Basis, study: StudyConfig, overrides: list[str]) -> bool:
    """Whether expanding again would give the same runs: the study, the program and the local rows are unchanged."""
    return basis.get("fingerprint") == _fingerprint(study, overrides) and all(
        _state(Path(file)) == state for file, state in basis["inputs"].items()
    )


def grid(study: StudyConfig, overrides: list[str]) -> Iterator[StudyCell]:
    """Yields every method on every task, without the settings that are tried."""
    for method, of_method in study.methods.items():
        for task, of_task in study.tasks.items():
            settings = [
                *study.settings,
                *(of_method or [f"method={method}"]),
                *(of_task or [f"task={task}"]),
                *(override for cell in study.cells if _applies(cell.methods, method) and _applies(cell.tasks, task)
                  for override in cell.settings),
                *overrides,
            ]  # fmt: skip
            yield StudyCell(method, task, last_of_each_key(settings))


def cells(study: StudyConfig, overrides: list[str]) -> Iterator[StudyCell]:
    """Yields every method on every task, with each choice of settings that is known before any run."""
    for cell in grid(study, overrides):
        for tried in _all_tried(study, cell):
            yield _with(cell, tried, overrides)


def _all_tried(study: StudyConfig, cell: StudyCell) -> list[dict[str, Any]]:
    if study.search is not None:
        adaptive = study.search.is_adaptive
        return [] if adaptive else draw(study.search, _space(study, cell), cell.method, cell.task)
    rates = study.learning_rates.get(cell.method)
    return [{RATE: rate} for rate in rates] if rates else [{}]


def _space(study: StudyConfig, cell: StudyCell) -> dict[str, Any]:
    """Returns the ranges searched for a cell; no default range is searched for a size that the study sets."""
    assert study.search is not None
    given = {override.partition("=")[0].lstrip("+") for override in cell.overrides}
    return space_of(study.search, cell.method, cell.task, compose(cell, Path()), given)


def _with(cell: StudyCell, tried: dict[str, Any], overrides: list[str]) -> StudyCell:
    """Returns the cell with these settings, which override the study's but not those of the command line."""
    added = [f"{key}={value}" for key, value in tried.items()]
    return replace(cell, overrides=last_of_each_key([*cell.overrides, *added, *overrides]), tried=tried)


# An even number of backslashes in front of it leaves its meaning.
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")


def compose(cell: StudyCell, folder: Path) -> RunConfig:
    """Returns the config of a cell's runs.

    Raises:
        RequestError: If its overrides do not compose; the message names the cell.
    """
    try:
        for override in cell.overrides:
            # A study may come from someone else: it may read neither environment variables nor other configs.
            if _INTERPOLATION.search(override):
                raise RequestError(f"{override}: in a study ${{...}} is not replaced: write the value itself.")
            if override.lstrip("+~").startswith("hydra"):
                raise RequestError(f"{override}: a study takes the settings of runs, not those of Hydra.")
        return replace(load_config(cell.overrides), runs_dir=str(folder))
    except RequestError as error:
        raise RequestError(f"{cell.method} on {cell.task}: {error}") from error


def _without_home(override: str) -> str:
    """Returns the override with `~` for the home folder, in the quotation marks that Hydra requires."""
    key, equals, value = without_home(override).partition("=")
    return f"{key}{equals}'{value}'" if value.startswith("~") else key + equals + value


def last_of_each_key(overrides: list[str]) -> list[str]:
    """Returns the overrides without those whose key is set again by a later one."""
    by_key: dict[str, str] = {}
    for override in overrides:
        match = _KEY.match(override)
        key = match.group(1) if match else override
        by_key.pop(key, None)
        by_key[key] = override
    return list(by_key.values())


def _applies(names: list[str], name: str) -> bool:
    return not names or name in names


def _trial_seeds(study: StudyConfig) -> list[int]:
    """Returns the seeds of the trainings that choose settings; a search must not report any of them.

    Raises:
        RequestError: If the seed of the search is also a reported one.
    """
    if study.search is None:
        return [seed for seed in study.rate_seeds if seed in study.seeds] or study.seeds[:1]
    if study.search.seed in study.seeds:
        raise RequestError(
            f"search.seed={study.search.seed} is one of the seeds {study.seeds}, whose runs are reported: give another."
        )
    return [study.search.seed]


def _check_distinct(runs: list[PlannedRun]) -> None:
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.key, run)
        if other is not run:
            raise RequestError(
                f"{run.method} on {run.task} with seed {run.seed} is the same run as {other.method} on {other.task} "
                f"with seed {other.seed}: their settings must differ."
            )


def _fingerprint(study: StudyConfig, overrides: list[str]) -> str:
    """Returns a hash of everything that the keys of a study's runs depend on, except local rows."""
    program = sorted(
        (str(file), _stamp(file))
        for root in (Path(__file__).parents[1], Path(str(files(CONFIG_MODULE))), own_config())
        if root is not None
        for pattern in ("*.py", "*.yaml")
        for file in root.rglob(pattern)
    )
    variables = [os.environ.get(name) for name in ("PETL_BENCH_DATA", "CUDA_VISIBLE_DEVICES")]
    environment = [__version__, *variables, gpu_may_be_there()]
    text = json.dumps([asdict(study), overrides, environment, program], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _state(path: Path) -> list[int | str]:
    """Returns a local file's stamp and its hash, because another file may have the same size and time.

    For a folder, returns the names of its parquet files, because parts of a table may have been added; empty if there
    is neither a file nor a folder.
    """
    if path.is_dir():
        return [file.name for file in parquet_files(path)]
    return [*_stamp(path), file_sha256(path)] if path.is_file() else []


def _stamp(file: Path) -> list[int]:
    if not file.exists():
        return []
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]
