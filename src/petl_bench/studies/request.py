"""What a `petl-bench study` command asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.config import CONFIG_MODULE
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.definition import ExecutorConfig, StudyConfig, check_seeds
from petl_bench.studies.executors import EXECUTORS

_OWN = re.compile(r"(methods|tasks|seeds|runs_dir|executor(?:\.[\w.]+)?)=(.*)", re.DOTALL)


@dataclass
class StudyRequest:
    """The overrides of a command, sorted by what they are for.

    Attributes:
        overrides: Settings of every run.
        methods, tasks: Of which runs are made now; None: all.
        seeds: In place of the study's; None: those.
        executor: How workers are started.
        runs_dir: The study's folder; None: `runs/<study>`.
    """

    overrides: list[str] = field(default_factory=list)
    methods: list[str] | None = None
    tasks: list[str] | None = None
    seeds: list[int] | None = None
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    runs_dir: str | None = None

    def folder(self, name: str) -> Path:
        """Where the study's runs lie."""
        return Path(self.runs_dir or Path("runs") / name).expanduser()

    def narrowed(self, runs: Iterable[PlannedRun], study: StudyConfig) -> list[PlannedRun]:
        """The runs that are asked for now.

        Raises:
            RequestError: for a name that the study does not have.
        """
        for kind, names, known in (("methods", self.methods, study.methods), ("tasks", self.tasks, study.tasks)):
            for name in names or []:
                if name not in known:
                    raise unknown_choice(kind, name, known)
        return [
            run
            for run in runs
            if (self.methods is None or run.method in self.methods) and (self.tasks is None or run.task in self.tasks)
        ]


def parse_request(overrides: list[str]) -> StudyRequest:
    """Sorts the overrides of a command: those of the study, those of the executor, and the settings of every run.

    Raises:
        RequestError: If an override is no setting, or a value does not fit.
    """
    request, executor, executor_overrides = StudyRequest(), "local", list[str]()
    for override in overrides:
        match = _OWN.fullmatch(override)
        if match is None:
            if "=" not in override and not override.startswith("~"):
                raise RequestError(f"{override}: a setting is key=value; `petl-bench study --help` says more.")
            if override.split("=")[0] in ("method", "task", "train.seed"):
                raise RequestError(f"{override}: a study has several; narrow it with methods=, tasks= or seeds=.")
            if override.split("=")[0] == "force":
                raise RequestError(f"{override}: delete the folders of runs that a study is to make again.")
            request.overrides.append(override)
            continue
        key, value = match.groups()
        if key == "executor":
            executor = value
        elif key.startswith("executor."):
            executor_overrides.append(f"{key.removeprefix('executor.')}={value}")
        elif key == "runs_dir":
            request.runs_dir = value
        elif key == "seeds":
            request.seeds = _seeds(value)
        else:
            setattr(request, key, _names(key, value))
    request.executor = _executor(executor, executor_overrides)
    return request


def _names(key: str, value: str) -> list[str]:
    names = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
    if not names:
        raise RequestError(f"{key}={value} names none: leave it out, or separate names by commas.")
    return names


def _seeds(value: str) -> list[int]:
    try:
        seeds = [int(name) for name in _names("seeds", value)]
    except ValueError as error:
        raise RequestError(f"seeds={value} must be whole numbers, separated by commas.") from error
    check_seeds(f"seeds={value}", seeds)
    return seeds


def _executor(name: str, overrides: list[str]) -> ExecutorConfig:
    if name not in EXECUTORS:
        raise unknown_choice("executor", name, EXECUTORS)
    text = files(CONFIG_MODULE).joinpath("executor", f"{name}.yaml").read_text(encoding="utf-8")
    try:
        option = OmegaConf.merge(OmegaConf.structured(ExecutorConfig), OmegaConf.create(text))
        settings = OmegaConf.to_object(OmegaConf.merge(option, OmegaConf.from_dotlist(overrides)))
    except OmegaConfBaseException as error:
        raise RequestError(
            f"executor.{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]} (conf/executor/{name}.yaml "
            "shows the settings)."
        ) from error
    assert isinstance(settings, ExecutorConfig)
    for key in ("workers", "runs_per_gpu"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise RequestError(f"executor.{key}={value} must be at least 1.")
    return settings
