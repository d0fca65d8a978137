"""What a study asks for: its definition, in a file, and the request of a `petl-bench study` command."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.config import run_settings
from petl_bench.errors import RequestError, first_line, unknown_choice
from petl_bench.process import check_name, user_path, without_home
from petl_bench.records.reading import parse_yaml, read_text, validate, yaml_fault
from petl_bench.records.run_key import is_location
from petl_bench.records.study_file import Claim, PlannedRun, PublishedRow
from petl_bench.reports.claims import check_claim
from petl_bench.settings import as_setting, check_choices, given_text, option_names, option_text, setting
from petl_bench.studies import EXECUTORS
from petl_bench.studies.search import SearchConfig, check_search
from petl_bench.training import SEED_RANGE


@dataclass
class CellConfig:
    """Settings of methods on tasks, both by the study's names; an empty `tasks` or `methods` means all."""

    methods: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """A grid of methods, tasks and seeds. Settings are overrides as `petl-bench run` takes them.

    If several overrides set the same key, the last one wins, in this order: `settings`, the method's, the task's, those
    of `cells`, and the command line's.

    Attributes:
        description: What it compares.
        needs: The machine, and the time there.
        settings: Settings of every run.
        methods: Settings by the method's name in tables; no settings mean `method=<name>`.
        tasks: Settings by the task's name in tables; no settings mean `task=<name>`.
        seeds: The seeds, with one run each.
        cells: Settings per (method, task).
        learning_rates: Rates by method; for each task, the one that is best on the selection split is chosen.
        rate_seeds: Seeds with which rates are compared; the other seeds run with the chosen rate.
        search: Draws settings of every method instead; those that are best on the selection split run with `seeds`.
        deviations: How the study differs from the papers that it is compared with.
        published: Rows of the papers' tables.
        claims: Statements of the papers, as tests on the records.
    """

    description: str = ""
    needs: str = ""
    settings: list[str] = field(default_factory=list)
    methods: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    cells: list[CellConfig] = field(default_factory=list)
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    rate_seeds: list[int] = field(default_factory=lambda: [0])
    search: SearchConfig | None = None
    deviations: list[str] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    # For pydantic, which reads the file: an unknown key is an error.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@dataclass
class ExecutorConfig:
    """How a study's worker processes are started."""

    name: str = "local"
    workers: int | None = setting(
        None,
        "Processes, jobs (slurm) or tasks (ray) that make runs at the same time; null: one job with slurm, else one a "
        "GPU, times runs_per_gpu, or one where there is none.",
    )
    runs_per_gpu: int = setting(1, "Small runs that share a GPU.")
    cluster: str = setting(
        "slurm",
        "executor=slurm: local tries submitit's processes on this machine.",
        choices=("slurm", "local", "debug"),
    )
    submitit: dict[str, Any] = setting({}, "executor=slurm: parameters of submitit's executor, by its own names.")
    address: str | None = setting(
        None, "executor=ray: an existing cluster's address, `auto` for that of this machine; null starts Ray here."
    )


_SUFFIX = ".yaml"


def study_names() -> list[str]:
    """Returns the names of the studies that ship, and of those in the user's folder of options."""
    return option_names("study")


def open_study(name_or_file: str) -> tuple[str, StudyConfig]:
    """Reads a study.

    Returns:
        The study's name and its definition.

    Raises:
        RequestError: If there is no such study, or it does not fit the schema.
    """
    if name_or_file.endswith((_SUFFIX, ".yml")):
        path = Path(name_or_file).expanduser()
        try:
            text = read_text(path)
        except FileNotFoundError as error:
            raise RequestError(f"The study {path} is not there: give the path of its file.") from error
        except (OSError, ValueError) as error:
            raise RequestError(f"The study {path} cannot be read: {error}.") from error
        check_name("The study's name", path.stem)
        study = _parse(text, str(path))
        _resolve_paths(study, path.parent)
        return path.stem, study
    names = study_names()
    if name_or_file not in names:
        near = difflib.get_close_matches(name_or_file, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RequestError(
            f"There is no study {name_or_file}.{hint} Name a file (NAME.yaml) or one of: {', '.join(names)}."
        )
    return name_or_file, _parse(option_text("study", name_or_file), f"conf/study/{name_or_file}{_SUFFIX}")


def _parse(text: str, where: str) -> StudyConfig:
    try:
        study = validate(StudyConfig, _normalized(parse_yaml(text)))
    except yaml.MarkedYAMLError as error:
        raise RequestError(f"{where}{yaml_fault(error)}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"{where} is no study: {first_line(error)}.") from error
    _check(study, where)
    return study


def _resolve_paths(study: StudyConfig, folder: Path) -> None:
    """Resolves the relative paths in a study's settings from the study's folder, wherever the command is run."""
    paths = {option.name for option in run_settings() if option.is_path}
    names = {(option.name, choice) for option in run_settings() for choice in option.choices}

    def resolve(override: str) -> str:
        """Returns a setting with its relative path, if it has one, made absolute from the study's folder."""
        key = override.partition("=")[0]
        value = given_text(override) if key in paths and "${" not in override else ""
        if value in ("", "null") or (key, value) in names:
            return override
        path = user_path(value, key)
        return override if path.is_absolute() else as_setting(key, str(folder / path))

    settings = [
        study.settings,
        *study.methods.values(),
        *study.tasks.values(),
        *(cell.settings for cell in study.cells),
    ]
    for overrides in settings:
        overrides[:] = map(resolve, overrides)


def _normalized(content: Any) -> Any:
    """Returns the content with an empty list for a name without settings, and with rates and cells as floats."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError("it holds no settings")
    for kind in ("methods", "tasks"):
        if isinstance(content.get(kind), dict):
            content[kind] = {str(name): settings or [] for name, settings in content[kind].items()}
    tables = [content.get("learning_rates"), *(_cells(row) for row in content.get("published") or [])]
    for table in tables:
        if isinstance(table, dict):
            for name, numbers in table.items():
                if isinstance(numbers, list):
                    table[name] = [float(n) if type(n) is int else n for n in numbers]
    return content


def _cells(row: Any) -> Any:
    return row.get("cells") if isinstance(row, dict) else None


def _check(study: StudyConfig, where: str) -> None:
    """Raises RequestError if names do not fit together."""
    if not study.methods or not study.tasks or not study.seeds:
        raise RequestError(f"{where} needs at least one of each: methods, tasks, seeds.")
    check_seeds(f"{where}, seeds", study.seeds)
    for name in (*study.methods, *study.tasks):
        if not name.strip() or not name.isprintable():
            raise RequestError(f"{where}: {name!r} is no name that a table can show.")
    named = [("cells", "methods", name) for cell in study.cells for name in cell.methods]
    named += [("cells", "tasks", name) for cell in study.cells for name in cell.tasks]
    named += [("learning_rates", "methods", name) for name in study.learning_rates]
    named += [("published", "methods", row.method) for row in study.published if row.method is not None]
    named += [("published", "tasks", task) for row in study.published for task in row.cells]
    for section, kind, name in named:
        known = getattr(study, kind)
        if name not in known:
            raise RequestError(f"{where}, {section}: {name} is none of its {kind}: {', '.join(known)}.")
    _check_search(study, where)
    for claim in study.claims:
        try:
            check_claim(claim, study.methods, study.tasks)
        except RequestError as error:
            raise RequestError(f"{where}, claims: {error}") from error
    for row in study.published:
        if not all(row.cells.values()):
            raise RequestError(f"{where}, published, {row.row}: a cell is empty; leave it out.")
        if not row.comparable and not row.why:
            raise RequestError(f"{where}, published, {row.row}: say why it is not comparable (why: ...).")


def _check_search(study: StudyConfig, where: str) -> None:
    if study.search is None:
        return
    if study.learning_rates:
        raise RequestError(f"{where}: search draws rates too: leave out learning_rates.")
    for name in study.search.space:
        if name not in study.methods:
            raise RequestError(f"{where}, search.space: {name} is none of its methods: {', '.join(study.methods)}.")
    try:
        check_search(study.search)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def check_seeds(where: str, seeds: list[int]) -> None:
    """Raises RequestError if there are no seeds, duplicate seeds or seeds out of range."""
    if not seeds or len(set(seeds)) < len(seeds) or not all(seed in SEED_RANGE for seed in seeds):
        raise RequestError(f"{where} must name at least one seed, each once, in 0..{SEED_RANGE[-1]}.")


_OWN = re.compile(r"(methods|tasks|seeds|search|runs_dir|executor(?:\.[\w.]+)?)=(.*)", re.DOTALL)


@dataclass
class StudyRequest:
    """The overrides of a command, grouped by purpose.

    Attributes:
        overrides: Settings of every run.
        methods, tasks: Those whose runs are made now; None: all.
        seeds: Seeds that replace the study's; None: the study's.
        tries_settings: Whether settings are searched for; if not, methods run with their own.
        executor: How workers are started.
        has_executor: Whether the command sets the executor.
        runs_dir: The study's folder; None: `runs/<study>`.
    """

    overrides: list[str] = field(default_factory=list)
    methods: list[str] | None = None
    tasks: list[str] | None = None
    seeds: list[int] | None = None
    tries_settings: bool = True
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    has_executor: bool = False
    runs_dir: str | None = None

    def folder(self, name: str) -> Path:
        """Returns the folder of the study's runs."""
        return Path(self.runs_dir or Path("runs") / name).expanduser()

    def departures(self, study: StudyConfig) -> list[str]:
        """Returns the settings that the command changes in the study, as far as they can change a score."""
        given = [
            without_home(override)
            for override in self.overrides
            if not is_location(override.lstrip("+~").partition("=")[0])
        ]
        if self.seeds is not None and self.seeds != study.seeds:
            given.append(f"seeds={','.join(map(str, self.seeds))}")
        if not self.tries_settings:
            given.append("search=none")
        return given

    def narrowed(self, runs: Iterable[PlannedRun], study: StudyConfig) -> list[PlannedRun]:
        """Returns the runs that this command asks for.

        Raises:
            RequestError: If the study does not have a requested method or task.
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
        RequestError: If an override is not a setting, or a value is invalid.
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
        request.has_executor |= key.startswith("executor")
        if key == "executor":
            executor = value
        elif key.startswith("executor."):
            executor_overrides.append(f"{key.removeprefix('executor.')}={value}")
        elif key == "runs_dir":
            request.runs_dir = value
        elif key == "seeds":
            request.seeds = _seeds(value)
        elif key == "search":
            if value != "none":
                raise RequestError(f"search={value}: only none can be given here; a study's file says how it searches.")
            request.tries_settings = False
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
    try:
        shipped = OmegaConf.create(option_text("executor", name))
        option = OmegaConf.merge(OmegaConf.structured(ExecutorConfig), shipped)
        settings = OmegaConf.to_object(OmegaConf.merge(option, OmegaConf.from_dotlist(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RequestError(
            f"executor.{getattr(error, 'full_key', '*')}: {str(error).splitlines()[0]} (`petl-bench list settings "
            "executor` shows the settings)."
        ) from error
    assert isinstance(settings, ExecutorConfig)
    check_choices("executor", settings)
    for key in ("workers", "runs_per_gpu"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise RequestError(f"executor.{key}={value} must be at least 1.")
    if settings.name == "slurm" and settings.runs_per_gpu != 1:
        raise RequestError(
            f"executor.runs_per_gpu={settings.runs_per_gpu}: a job of executor=slurm makes one run at a time; give "
            "executor.workers jobs instead."
        )
    return settings


def study_and_overrides(arguments: list[str]) -> tuple[str, list[str]]:
    """Separates a study's name from the overrides, which may come in any order.

    Raises:
        RequestError: If there is no name, or more than one.
    """
    names = [argument for argument in arguments if "=" not in argument and not argument.startswith("~")]
    if len(names) != 1:
        given = f"{len(names)} are given ({', '.join(names)})" if names else "none is given"
        raise RequestError(
            f"petl-bench study takes the name of one study and settings as key=value, but {given}: "
            "`petl-bench list studies` shows the names."
        )
    return names[0], [argument for argument in arguments if argument != names[0]]
