"""The schema of a whole run, composed by Hydra; no Hydra object goes further than this module."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.backbones.layers import LayersConfig
from petl_bench.backbones.source import ATTENTION, WEIGHTS, BackboneConfig
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.measure.environment import MeasureConfig
from petl_bench.methods import registry
from petl_bench.methods.registry import MethodConfig
from petl_bench.process import gpu_may_be_there
from petl_bench.tasks.config import TaskConfig, check_task
from petl_bench.trackers.tracker import TRACKERS, TrackerConfig
from petl_bench.training.config import TrainConfig, check_train

if TYPE_CHECKING:
    from collections.abc import Iterable


CONFIG_MODULE = "petl_bench.conf"


@dataclass
class RecipeConfig:
    """Where settings come from that a paper gives by task; they act through `method`, `task` and `train`."""

    name: str | None = None
    source: str | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class RunConfig:
    """Everything that one run is made from."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    data_root: str | None = None
    runs_dir: str = "runs"
    force: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain containers, ready for JSON."""
        return asdict(self)


def register_schemas() -> None:
    """Makes the schema of a run, and of every registered method, known to Hydra."""
    _register(tuple(registry.all_methods().values()))


@cache
def _register(methods: tuple[registry.Method, ...]) -> None:
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for method in methods:
        store.store(group="schema/method", name=method.name, node=method.config)
        if not method.ships_yaml:
            store.store(group="method", name=method.name, node=method.config)


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Turns a composed config into the dataclass, and checks it.

    Raises:
        RequestError: where a setting is missing or contradicts another.
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
    # The table has done its work: what it gave stands in the other settings.
    run.recipe.tasks = {}
    check(run)
    return run


def check(cfg: RunConfig) -> None:
    """Raises RequestError where settings are outside their range or contradict each other."""
    check_task(cfg.task)
    check_train(cfg.train)
    if cfg.tracker.name not in TRACKERS:
        raise unknown_choice("tracker", cfg.tracker.name, TRACKERS)
    if cfg.backbone.weights not in WEIGHTS:
        raise unknown_choice("backbone.weights", cfg.backbone.weights, WEIGHTS)
    if cfg.backbone.attention not in (None, *ATTENTION):
        raise unknown_choice("backbone.attention", cfg.backbone.attention, ATTENTION)


def resolved(cfg: RunConfig) -> RunConfig:
    """The run with what `auto` means on this machine in its place."""
    if cfg.train.precision == "auto" and not gpu_may_be_there():
        return replace(cfg, train=replace(cfg.train, precision="fp32"))
    from petl_bench.training.device import resolved_precision

    return replace(cfg, train=replace(cfg.train, precision=resolved_precision(cfg.train)))


def load_config(overrides: list[str] | None = None) -> RunConfig:
    """Composes a run's config as the command line would, for scripts and tests.

    Args:
        overrides: Hydra overrides, e.g. `["task=mrpc", "method.r=16"]`.
    """
    register_schemas()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return from_hydra(compose("config", overrides=overrides or []))


def config_from_dict(content: dict[str, Any]) -> RunConfig:
    """Reads the config that a record keeps.

    Raises:
        RequestError: where its method is not there, or it holds settings that this version does not know.
    """
    method = registry.get_method(str(content["method"]["name"]))
    schema = OmegaConf.structured(RunConfig)
    schema.method = OmegaConf.structured(method.config)
    try:
        run = OmegaConf.to_object(OmegaConf.merge(schema, content))
    except OmegaConfBaseException as error:
        raise RequestError(f"The record's config does not fit this version of petl-bench: {error}") from error
    assert isinstance(run, RunConfig)
    return run


_HELP = "`petl-bench run --help` shows all groups and settings."

_GROUPS = ("backbone", "method", "layers", "task", "train", "tracker", "recipe")

_FREE_MAPPINGS = ("method.args", "backbone.architecture")

CONFIG_ERRORS = (ConfigCompositionException, HydraException, OmegaConfBaseException)


def explain(error: Exception, known_settings: Iterable[str] = ()) -> RequestError:
    """Turns Hydra's and OmegaConf's errors into a request error that names the key and the way out.

    Args:
        error: What Hydra raised.
        known_settings: Keys that exist, for suggestions.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error, text)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(match.group(1), known_settings)
    if match := re.search(r"Error merging override (\S+)", text):
        return RequestError(f"{match.group(1)}: {_cause(error)}. {_HELP}")
    if match := re.search(r"Could not append to config.*?'([^']+)'.*?already", text, re.DOTALL):
        return RequestError(f"+{match.group(1)}: this setting exists already, give it without the plus sign.")
    first_lines = " ".join(line.strip() for line in text.splitlines()[:2])
    return RequestError(f"{first_lines.rstrip('.')}. {_HELP}")


def setting_names(config: DictConfig) -> list[str]:
    """Every key of a config, dotted."""
    names: list[str] = []
    for key in map(str, config):
        node = OmegaConf.select(config, key, throw_on_missing=False)
        names += [f"{key}.{name}" for name in setting_names(node)] if isinstance(node, DictConfig) else [key]
    return names


def _missing_option(error: MissingConfigException, text: str) -> RequestError:
    if error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_choice(group, option, (name for name in error.options if not name.startswith("_")))
    return RequestError(f"{text.splitlines()[0]}. {_HELP}")


def _unknown_setting(key: str, known_settings: Iterable[str]) -> RequestError:
    if key in _FREE_MAPPINGS:
        return RequestError(f"{key} takes names of its own: add each with a plus sign, as in +{key}.NAME=VALUE.")
    known = list(known_settings)
    parent = f"{key.rpartition('.')[0]}." if "." in key else ""
    siblings = sorted({name[len(parent) :].partition(".")[0] for name in known if name.startswith(parent)})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    there = f" There are {', '.join(parent + name for name in siblings)}." if siblings else ""
    return RequestError(f"{key} is not a setting here.{hint}{there}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0].rstrip(".")


@contextmanager
def explained(overrides: list[str]) -> Iterator[None]:
    """Says in one sentence what is wrong with the overrides, where they do not compose."""
    try:
        yield
    except CONFIG_ERRORS as error:
        raise explain(error, _known_settings(overrides)) from error


def load_explained(overrides: list[str]) -> RunConfig:
    """Composes a run's config as `load_config` does.

    Raises:
        RequestError: where the overrides do not compose.
    """
    with explained(overrides):
        return load_config(overrides)


def _known_settings(overrides: list[str]) -> list[str]:
    """Keys of the config with the groups that were asked for, for suggestions; none where they do not compose."""
    options = [word for word in overrides if word.partition("=")[0] in _GROUPS and "," not in word]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return setting_names(compose("config", overrides=options))
    except CONFIG_ERRORS:
        return []
