"""The configuration of a run: its schema, and how Hydra composes and checks it.

Hydra stops here: what leaves this module are dataclasses.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from petl_bench.backbones.anatomy import LayersConfig
from petl_bench.backbones.source import BackboneConfig
from petl_bench.config_errors import CONFIG_ERRORS, explained, setting_names, unknown_setting
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.measure import MeasureConfig
from petl_bench.methods import registry
from petl_bench.methods.registry import MethodConfig
from petl_bench.process import check_hub_name, check_name, gpu_may_be_there
from petl_bench.records.reading import validate
from petl_bench.settings import (
    MISSING,
    Setting,
    check_choices,
    check_texts,
    compose_options,
    declared,
    given_values,
    help_lines,
    option_names,
    own_config,
    setting,
)
from petl_bench.tasks import TaskConfig, check_task, with_effective_draw
from petl_bench.tasks.ood import check_ood
from petl_bench.trackers import TRACKERS, TrackerConfig
from petl_bench.training import SEED_RANGE, TrainConfig, check_train, training_for_few_rows

_log = logging.getLogger(__name__)


@dataclass
class RecipeConfig:
    """A paper's settings by task. They take effect through `method`, `task` and `train`."""

    name: str | None = None
    source: str | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class RunConfig:
    """All settings of one run."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    data_root: str | None = setting(
        None,
        "Folder with the rows of the task, laid out as its dataset; null: the folder that PETL_BENCH_DATA names, else "
        "the Hugging Face hub.",
        is_path=True,
    )
    runs_dir: str = setting("runs", "Folder of the runs' records.")
    force: bool = setting(False, "Repeat a run whose record exists.")

    # For pydantic, which reads the config of a record: an unknown setting is an error.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain containers, ready for JSON."""
        return asdict(self)


# An override of a setting in a group, or of one outside of groups, such as `runs_dir`.
_UNGROUPED = "|".join(entry.name for entry in declared(RunConfig) if entry.meaning)
_SETTING = re.compile(rf"(\w+\.[\w.]+|{_UNGROUPED})=")


def register_schemas() -> None:
    """Makes the schema of a run, and of every registered method, known to Hydra."""
    _register(tuple(registry.all_methods().values()))


@cache
def _register(methods: tuple[registry.Method, ...]) -> None:
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for method in methods:
        store.store(group="schema/method", name=method.name, node=method.config)
        if method.name not in option_names("method"):
            store.store(group="method", name=method.name, node=method.config)


def run_settings() -> list[Setting]:
    """The settings of a run, those of all registered methods included."""
    return _settings_with(tuple(registry.all_methods().values()))


@cache
def _settings_with(methods: tuple[registry.Method, ...]) -> list[Setting]:
    groups = {name: kind for name, kind in get_type_hints(RunConfig).items() if is_dataclass(kind)}
    settings = [entry for name, kind in groups.items() for entry in declared(kind, name)] + declared(RunConfig)
    # Names of options and the groups themselves are chosen by group=option, and have no text.
    settings = [entry for entry in settings if entry.meaning]
    for method in methods:
        settings += [] if method.settings is None else declared(method.settings, "method", f"method={method.name}")
    return settings


def _takes_list(key: str) -> bool:
    """Whether it is a setting that takes a list, whatever the method."""
    are_lists = [entry.is_list for entry in run_settings() if entry.name == key]
    return bool(are_lists) and all(are_lists)


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Turns a config that Hydra composed into the dataclass, and checks it.

    Raises:
        RequestError: If a setting is missing, out of its range, or contradicts another.
    """
    if cfg.recipe.name is not None and cfg.task.name not in cfg.recipe.tasks:
        raise unknown_choice(
            f"recipe={cfg.recipe.name} has no settings for this task: task", cfg.task.name, cfg.recipe.tasks
        )
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise RequestError(f"{missing[0]} must be given: add {missing[0]}=... to the command.")
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig)
    _check_known(cfg, run)
    # The other settings already contain the recipe's values.
    run.recipe.tasks = {}
    check(run)
    return run


def _check_known(cfg: DictConfig, run: RunConfig) -> None:
    """Raises RequestError for a setting that was added with a plus sign, and that nothing would read."""
    known = run.to_dict()
    for group in map(str, cfg):
        names = cfg[group] if isinstance(known.get(group), dict) else ()
        for key in (group, *(f"{group}.{name}" for name in names)):
            parent, _, name = key.rpartition(".")
            if name not in (known[parent] if parent else known):
                raise unknown_setting(key, setting_names(OmegaConf.create(known)))


def check(cfg: RunConfig) -> None:
    """Checks the settings.

    Raises:
        RequestError: If one is out of its range, or contradicts another.
    """
    check_texts(cfg.to_dict())
    check_names(cfg)
    check_task(cfg.task)
    check_ood(cfg.task)
    check_train(cfg.train, cfg.task.type)
    if cfg.tracker.name not in TRACKERS:
        raise unknown_choice("tracker", cfg.tracker.name, TRACKERS)
    check_choices("backbone", cfg.backbone)
    if cfg.backbone.name == "hub" and not (cfg.backbone.hub_id or cfg.backbone.path):
        raise RequestError("backbone=hub needs the model's name on the hub: give backbone.hub_id=OWNER/NAME.")
    check_choices("layers", cfg.layers)
    check_choices("method", cfg.method, free="init" if cfg.method.start is not None else None)
    if cfg.backbone.dtype == "bf16" and cfg.train.precision not in ("bf16", "auto"):
        raise RequestError(
            f"backbone.dtype=bf16 with train.precision={cfg.train.precision}: such weights need train.precision=bf16."
        )


def check_names(cfg: RunConfig) -> None:
    """Checks all settings that become names of files, folders and sets of rows, those of a record included.

    Raises:
        RequestError: If one would lead out of the folder that it belongs in, or take the place of other rows.
    """
    task = cfg.task
    names: dict[str, str | None] = {} if cfg.backbone.path else {"backbone.name": cfg.backbone.name}
    names |= {f"task.{key}": getattr(task, key) for key in ("name", "train_split", "validation_split", "test_split")}
    names |= {"task.subset": task.subset, "task.submission": task.submission}
    on_hub = {"backbone.hub_id": cfg.backbone.hub_id}
    if task.source in ("package", "hub"):
        (on_hub if task.source == "hub" else names)["task.dataset"] = task.dataset
    own: set[str | None] = {"train", "selection", "report", "ood", "train_held_out"}
    own |= {task.train_split, task.validation_split, task.test_split if task.protocol == "test" else None}
    for kind, splits in (("also_report", task.also_report), ("also_submit", task.also_submit)):
        for name, split in splits.items():
            if name in own:
                raise RequestError(f"task.{kind}.{name}: the task's own rows are called {name}: give another name.")
            names |= {f"task.{kind}.{name}.{key}": getattr(split, key) for key in ("subset", "split", "submission")}
    for check_one, values in ((check_name, names), (check_hub_name, on_hub)):
        for key, value in values.items():
            if value is not None:
                check_one(key, value)


_Config = TypeVar("_Config", bound=RunConfig)


def resolved(cfg: _Config) -> _Config:
    """The same config with `auto` replaced by what it means on this machine, for `train.device` and `train.precision`.

    A draw of rows that has no effect is replaced, too.
    `train.cache=auto` stays: it depends on the model and on free memory, and the record shows what was chosen.

    Raises:
        RequestError: If what `auto` means contradicts another setting.
    """
    if gpu_may_be_there():
        from petl_bench.training.device import resolved_device, resolved_precision

        device, precision = resolved_device(cfg.train), resolved_precision(cfg.train)
    else:
        device = "cpu" if cfg.train.device == "auto" else cfg.train.device
        precision = "fp32" if cfg.train.precision == "auto" else cfg.train.precision
    train = replace(cfg.train, device=device, precision=precision)
    resolved_cfg = replace(cfg, task=with_effective_draw(cfg.task), train=train)
    check(resolved_cfg)
    return resolved_cfg


def load_config(overrides: list[str] | None = None, primary: str = "config") -> RunConfig:
    """Composes a run's config as the command line does.

    Args:
        overrides: Hydra overrides, e.g. `["task=mrpc", "method.r=16"]`.
        primary: The file of conf/ to start from.

    Returns:
        The config, every setting checked.

    Raises:
        RequestError: If the overrides do not compose, or the settings do not fit together.
    """
    overrides = [as_list(override) for override in overrides or []]
    register_schemas()
    with explained(overrides):
        return from_hydra(_composed(overrides, primary))


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, in Hydra's order: the last of several values changes first.

    Raises:
        RequestError: If an override cannot be read, or does not list the values to sweep over.
    """
    with explained(overrides):
        parsed = OverridesParser.create().parse_overrides(overrides)
    values = []
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise RequestError(f"{text}: -m takes values that are listed, as in {override.key_or_group}=1,2,3.")
        sweep = override.sweep_string_iterator() if override.is_sweep_override() else None
        values.append([text] if sweep is None else [f"{override.get_key_element()}={value}" for value in sweep])
    return [list(combination) for combination in itertools.product(*values)]


def as_list(override: str) -> str:
    """The override with a single value in brackets where the setting takes a list."""
    key, equals, value = override.partition("=")
    is_one = equals and value not in ("", "null") and not re.search(r"[\[\],${}]", value)
    return f"{key}=[{value}]" if is_one and _takes_list(key) else override


def _composed(overrides: list[str], primary: str) -> DictConfig:
    """Composes the overrides with Hydra.

    Hydra spends nearly all its time on the options of groups. They are composed once for all configs that
    differ in plain settings only, which are then set as Hydra sets them.
    """
    options = tuple(override for override in overrides if not _changes_setting(override))
    cfg = copy.deepcopy(_composed_options(tuple(registry.all_methods()), own_config(), options, primary))
    try:
        settings = OverridesParser.create().parse_overrides([text for text in overrides if _changes_setting(text)])
        for override in settings:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except CONFIG_ERRORS:
        # Hydra says what is wrong with them.
        return compose_options(primary, overrides)
    is_sweep = any(override.is_sweep_override() for override in settings)
    return compose_options(primary, overrides) if is_sweep else cfg


def _changes_setting(override: str) -> bool:
    """Whether it has the form `key.in.a.group=value`. The rest is options of groups, additions, deletions."""
    return bool(_SETTING.match(override)) and not override.startswith("hydra.")


@lru_cache(maxsize=256)
def _composed_options(methods: tuple[str, ...], own: Path | None, options: tuple[str, ...], primary: str) -> DictConfig:
    """The config with these options of groups; it depends on the registered methods and the user's options, too."""
    return compose_options(primary, list(options))


def config_from_dict(content: dict[str, Any]) -> RunConfig:
    """Reads the config of a record as plain data, without OmegaConf, which would replace `${...}`.

    Raises:
        RequestError: If its method is not installed, or it contains settings that this version does not know.
    """
    try:
        method = registry.get_method(str(content.get("method", {}).get("name")))
        run = validate(RunConfig, content | {"method": {}}, "config")
        run.method = validate(method.config, content["method"], "config.method")
        for group, settings in run.to_dict().items():
            for key, value in settings.items() if isinstance(settings, dict) else ():
                if value == MISSING and key not in content.get(group, {}):
                    raise ValueError(f"config.{group}.{key} is missing")
        check_names(run)
        if not run.task.text_columns:
            raise ValueError("config.task.text_columns names no column")
        if run.train.seed not in SEED_RANGE:
            raise ValueError(f"config.train.seed={run.train.seed} must lie in 0..{SEED_RANGE[-1]}")
    except ValueError as error:
        raise RequestError(f"The record's config does not fit this version of petl-bench: {error}.") from error
    return run


def with_data(overrides: Sequence[str], *, adjust_training: bool) -> list[str]:
    """The overrides of a command, with `data=FILE` replaced by the settings of a task for the user's file.

    Args:
        overrides: As they were given.
        adjust_training: Whether to adjust the number of epochs and the batch size to few rows, where the overrides do
            not set them.

    Returns:
        The overrides with those settings in place of `data=FILE`.

    Raises:
        RequestError: If another task is given as well, or `data_settings` raises it.
    """
    from petl_bench.tasks.columns import data_settings

    files = [override.removeprefix("data=") for override in overrides if override.startswith("data=")]
    if not files:
        return list(overrides)
    others = [override for override in overrides if not override.startswith("data=")]
    if len(files) > 1 or any(override.startswith(("task=", "task.train_file=")) for override in others):
        raise RequestError("data=FILE names the rows of a task of your own: give one file, and no other task.")
    with explained(others):
        given = given_values(others)
    settings, num_rows = data_settings(files[0], given)
    if adjust_training and "train.max_steps" not in given:
        # At most a fifth of a single file is held out.
        num_training = num_rows if "task.validation_file" in given else max(1, num_rows - num_rows // 5)
        if adjusted := training_for_few_rows(num_training, TrainConfig(), given):
            settings += adjusted
            _log.info("%s, as rows are few: settings of the command line take their place", ", ".join(adjusted))
    return [*settings, *others]


def run_help(overrides: list[str]) -> str:
    """The text of `run --help`: every setting of the chosen options with its value and its meaning.

    Raises:
        RequestError: If the overrides do not compose.
    """
    overrides = [override for override in overrides if not override.startswith("-")]
    with explained(overrides):
        settings = compose_options("config", overrides, with_hydra=True)
    with open_dict(settings):
        template = str(settings.pop("hydra").help.template)
    values = OmegaConf.to_container(settings, resolve=True)
    here = ("", f"method={settings.method.name}")
    shown = [entry for entry in run_settings() if entry.option in here]
    lines = [line for entry in shown for line in help_lines(entry, values)]
    return template.replace("$CONFIG", "\n".join(lines)).rstrip()
