"""Turns a study into its runs: every method on every task, with every seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from petl_bench import __version__
from petl_bench.config import CONFIG_MODULE, RunConfig, load_config
from petl_bench.errors import RequestError
from petl_bench.process import file_sha256, gpu_may_be_there, without_home
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.run.identity import identify, local_files
from petl_bench.studies.definition import StudyConfig
from petl_bench.tasks.tables import parquet_files

# Of a study's keys: a fingerprint of settings and program, and the state of each local file.
Basis = dict[str, Any]

_KEY = re.compile(r"[+~]*([\w./@]+)")


@dataclass(frozen=True)
class StudyCell:
    """One method on one task with one learning rate: what differs in seed alone.

    Attributes:
        overrides: `petl-bench run` with these, and a seed, makes its runs.
        learning_rate: None where the study tries no several.
    """

    method: str
    task: str
    overrides: list[str]
    learning_rate: float | None = None


def expand(name: str, study: StudyConfig, overrides: list[str], folder: Path) -> tuple[StudyFile, Basis]:
    """Lists all runs of a study with their keys, and says on what these rest.

    Args:
        name: The study's.
        study: What it asks for.
        overrides: Settings from the command line, which win over the study's.
        folder: Where its runs lie.

    Raises:
        RequestError: If settings do not compose, or two runs are the same.
    """
    runs, trials = [], _rate_seeds(study)
    inputs: dict[str, list[int | str]] = {}
    fingerprint = _fingerprint(study, overrides)
    for cell in cells(study, overrides):
        cfg = compose(cell, folder)
        local = local_files(cfg).values()
        inputs |= {str(path): _state(path) for file in local for path in (file, file.parent)}
        for seed in study.seeds:
            identity = identify(replace(cfg, train=replace(cfg.train, seed=seed)))
            has_rates = cell.learning_rate is not None
            runs.append(
                PlannedRun(
                    *(cell.method, cell.task, seed, identity.key, identity.folder.name),
                    overrides=[*map(_without_home, cell.overrides), f"train.seed={seed}"],
                    learning_rate=cell.learning_rate,
                    is_trial=has_rates and seed in trials,
                    chosen=None if has_rates else True,
                    cache=cfg.train.cache,
                )
            )
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
    )
    return expanded, {"fingerprint": fingerprint, "inputs": inputs}


def still_true(basis: Basis, study: StudyConfig, overrides: list[str]) -> bool:
    """Whether expanding again would give the same: neither the study, the program nor the local rows have changed."""
    return basis.get("fingerprint") == _fingerprint(study, overrides) and all(
        _state(Path(file)) == state for file, state in basis["inputs"].items()
    )


def cells(study: StudyConfig, overrides: list[str]) -> Iterator[StudyCell]:
    """Every method on every task, with each of its learning rates."""
    for method, of_method in study.methods.items():
        for task, of_task in study.tasks.items():
            rates: list[float | None] = [*study.learning_rates.get(method, [])]
            for rate in rates or [None]:
                mine = [
                    *study.settings,
                    *(of_method or [f"method={method}"]),
                    *(of_task or [f"task={task}"]),
                    *(override for cell in study.cells if _applies(cell.methods, method) and _applies(cell.tasks, task)
                      for override in cell.settings),
                    *([] if rate is None else [f"train.learning_rate={rate}"]),
                    *overrides,
                ]  # fmt: skip
                yield StudyCell(method, task, last_of_each_key(mine), rate)


def compose(cell: StudyCell, folder: Path) -> RunConfig:
    """The config of a cell's runs.

    Raises:
        RequestError: If its overrides do not compose, naming the cell.
    """
    try:
        for override in cell.overrides:
            # A study may come from elsewhere: it reads neither variables of the environment nor other configs.
            if "${" in override:
                raise RequestError(f"{override}: in a study ${{...}} is not replaced: write the value itself.")
            if override.lstrip("+~").startswith("hydra"):
                raise RequestError(f"{override}: a study takes the settings of runs, not those of Hydra.")
        return replace(load_config(cell.overrides), runs_dir=str(folder))
    except RequestError as error:
        raise RequestError(f"{cell.method} on {cell.task}: {error}") from error


def _without_home(override: str) -> str:
    """The override with `~` for the home folder, in the quotation marks that Hydra wants around it."""
    key, equals, value = without_home(override).partition("=")
    return f"{key}{equals}'{value}'" if value.startswith("~") else key + equals + value


def last_of_each_key(overrides: list[str]) -> list[str]:
    """The overrides without those whose key is set again by a later one."""
    by_key: dict[str, str] = {}
    for override in overrides:
        match = _KEY.match(override)
        key = match.group(1) if match else override
        by_key.pop(key, None)
        by_key[key] = override
    return list(by_key.values())


def _applies(names: list[str], name: str) -> bool:
    return not names or name in names


def _rate_seeds(study: StudyConfig) -> list[int]:
    return [seed for seed in study.rate_seeds if seed in study.seeds] or study.seeds[:1]


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
    """Changes with all that the keys of a study's runs depend on, local rows excepted."""
    program = sorted(
        (str(file), _stamp(file))
        for root in (Path(__file__).parents[1], Path(str(files(CONFIG_MODULE))))
        for pattern in ("*.py", "*.yaml")
        for file in root.rglob(pattern)
    )
    variables = [os.environ.get(name) for name in ("PETL_BENCH_DATA", "CUDA_VISIBLE_DEVICES")]
    environment = [__version__, *variables, gpu_may_be_there()]
    text = json.dumps([asdict(study), overrides, environment, program], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _state(path: Path) -> list[int | str]:
    """The stamp of a local file and its hash, as it may have been replaced by one of the same size and time.

    Of a folder the names of its parquet files, as there may be more parts of a table by now; empty where there is
    neither.
    """
    if path.is_dir():
        return [file.name for file in parquet_files(path)]
    return [*_stamp(path), file_sha256(path)] if path.is_file() else []


def _stamp(file: Path) -> list[int]:
    found = file.stat() if file.exists() else None
    return [] if found is None else [found.st_size, found.st_mtime_ns]
