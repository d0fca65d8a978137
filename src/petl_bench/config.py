"""The configuration of a run: its schema, how Hydra composes it, and what is wrong with overrides, in one sentence.

Hydra stops here: what leaves this module are dataclasses.
"""

from __future__ import annotations

import copy
import difflib
import re
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, ClassVar, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from petl_bench.backbones.anatomy import LayersConfig
from petl_bench.backbones.source import ATTENTION, DTYPES, WEIGHTS, BackboneConfig
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.measure import MeasureConfig
from petl_bench.methods import registry
from petl_bench.methods.registry import MethodConfig
from petl_bench.process import check_name, gpu_may_be_there
from petl_bench.records.reading import validate
from petl_bench.tasks.config import TaskConfig, check_task, with_effective_draw
from petl_bench.tasks.ood import check_ood
from petl_bench.trackers.tracker import TRACKERS, TrackerConfig
from petl_bench.training.config import TrainConfig, check_train

CONFIG_MODULE = "petl_bench.conf"
_CONFIG_ERRORS = (ConfigCompositionException, HydraException, OmegaConfBaseException)

_HELP = "`petl-bench run --help` shows all groups and settings."
_GROUPS = ("backbone", "method", "layers", "task", "train", "tracker", "recipe")
_SETTING = re.compile(r"(\w+\.[\w.]+|data_root|runs_dir|force)=")
# Mappings whose keys the user chooses.
_FREE_MAPPINGS = ("method.args", "backbone.architecture")


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
    data_root: str | None = None
    runs_dir: str = "runs"
    force: bool = False

    # Of pydantic, which reads the config of a record: a setting that is unknown is an error.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain containers, ready for JSON."""
        return asdict(self)


def option_names(group: str) -> list[str]:
    """The names of the options that a group of conf/ ships, in alphabetical order.

    A file whose name begins with an underscore is what several options have in common, and no option.
    """
    names = (item.name for item in files(CONFIG_MODULE).joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and not name.startswith("_"))


def register_schemas() -> None:
    """Makes the schema of a run, and of every registered method, known to Hydra."""
    _register(tuple(registry.all_methods().values()))


@cache
def _register(methods: tuple[registry.Method, ...]) -> None:
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for method in methods:
        store.store(group="schema/method", name=method.name, node=method.config)
        if not files(CONFIG_MODULE).joinpath("method", f"{method.name}.yaml").is_file():
            store.store(group="method", name=method.name, node=method.config)


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
    # Its values are in the other settings by now.
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
                raise _unknown_setting(key, _setting_names(OmegaConf.create(known)))


def check(cfg: RunConfig) -> None:
    """Checks the settings.

    Raises:
        RequestError: If one is out of its range, or contradicts another.
    """
    check_names(cfg)
    check_task(cfg.task)
    check_ood(cfg.task)
    check_train(cfg.train, cfg.task.type)
    if cfg.tracker.name not in TRACKERS:
        raise unknown_choice("tracker", cfg.tracker.name, TRACKERS)
    if cfg.backbone.weights not in WEIGHTS:
        raise unknown_choice("backbone.weights", cfg.backbone.weights, WEIGHTS)
    if cfg.backbone.attention not in (None, *ATTENTION):
        raise unknown_choice("backbone.attention", cfg.backbone.attention, ATTENTION)
    if cfg.backbone.dtype not in DTYPES:
        raise unknown_choice("backbone.dtype", cfg.backbone.dtype, DTYPES)
    if cfg.backbone.dtype == "bf16" and cfg.train.precision not in ("bf16", "auto"):
        raise RequestError(
            f"backbone.dtype=bf16 with train.precision={cfg.train.precision}: such weights need train.precision=bf16."
        )


def check_names(cfg: RunConfig) -> None:
    """Checks all settings that become names of files and folders, those of a record included.

    Raises:
        RequestError: If one would lead out of the folder that it belongs in.
    """
    task = cfg.task
    names: dict[str, str | None] = {} if cfg.backbone.path else {"backbone.name": cfg.backbone.name}
    names |= {f"task.{key}": getattr(task, key) for key in ("name", "train_split", "validation_split", "test_split")}
    names |= {"task.subset": task.subset, "task.submission": task.submission}
    for kind, splits in (("also_report", task.also_report), ("also_submit", task.also_submit)):
        for name, one in splits.items():
            names |= {f"task.{kind}.{name}.{key}": getattr(one, key) for key in ("subset", "split", "submission")}
    for key, value in names.items():
        if value is not None:
            check_name(key, value)


_Config = TypeVar("_Config", bound=RunConfig)


def resolved(cfg: _Config) -> _Config:
    """The same config with `auto` replaced by what it means on this machine, for `train.device` and `train.precision`.

    A draw of rows that has no effect is replaced, too.
    `train.cache=auto` stays: it depends on the model and on free memory, and the record says what it came to.

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
    found = replace(cfg, task=with_effective_draw(cfg.task), train=train)
    check(found)
    return found


def load_config(overrides: list[str] | None = None, primary: str = "config") -> RunConfig:
    """Composes a run's config as the command line does.

    Args:
        overrides: Hydra overrides, e.g. `["task=mrpc", "method.r=16"]`.
        primary: The file of conf/ to start from.

    Raises:
        RequestError: If the overrides do not compose, or the settings do not fit together.
    """
    overrides = overrides or []
    register_schemas()
    with explained(overrides):
        return from_hydra(_composed(overrides, primary))


def _composed(overrides: list[str], primary: str) -> DictConfig:
    """What Hydra composes from the overrides.

    Nearly all the time that Hydra takes goes into the options of groups. They are composed once for all configs that
    differ in plain settings only, which are then set as Hydra sets them.
    """
    options = tuple(one for one in overrides if not _changes_setting(one))
    cfg = copy.deepcopy(_composed_options(tuple(registry.all_methods()), options, primary))
    try:
        settings = OverridesParser.create().parse_overrides([one for one in overrides if _changes_setting(one)])
        for setting in settings:
            OmegaConf.update(cfg, setting.key_or_group, setting.value(), merge=True)
    except _CONFIG_ERRORS:
        # Hydra says what is wrong with them.
        return _compose(overrides, primary)
    return _compose(overrides, primary) if any(one.is_sweep_override() for one in settings) else cfg


def _changes_setting(override: str) -> bool:
    """Whether it has the form `key.in.a.group=value`. The rest is options of groups, additions, deletions."""
    return bool(_SETTING.match(override)) and not override.startswith("hydra.")


@lru_cache(maxsize=256)
def _composed_options(methods: tuple[str, ...], options: tuple[str, ...], primary: str) -> DictConfig:
    """The config with these options of groups; it depends on the methods that are registered, too."""
    return _compose(list(options), primary)


def _compose(overrides: list[str], primary: str) -> DictConfig:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose(primary, overrides=overrides)


def config_from_dict(content: dict[str, Any]) -> RunConfig:
    """Reads the config that a record holds. It is data: OmegaConf, which would replace `${...}`, does not see it.

    Raises:
        RequestError: If its method is not installed, or it holds settings that this version does not know.
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
    except ValueError as error:
        raise RequestError(f"The record's config does not fit this version of petl-bench: {error}.") from error
    return run


def run_help(overrides: list[str]) -> str:
    """The text of `run --help`, as Hydra prints it but in a fraction of the time: Hydra also looks up all groups."""
    overrides = [one for one in overrides if not one.startswith("-")]
    with explained(overrides), initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        settings = compose("config", overrides=overrides, return_hydra_config=True)
    template = settings.hydra.help.template
    with open_dict(settings):
        del settings["hydra"]
    return str(template).replace("$CONFIG", OmegaConf.to_yaml(settings)).rstrip()


@contextmanager
def explained(overrides: list[str]) -> Iterator[None]:
    """Within it, errors of Hydra and OmegaConf become a request error that says what is wrong with the overrides."""
    try:
        yield
    except _CONFIG_ERRORS as error:
        raise _explain(error, overrides) from error
    except Exception as error:
        # Without a file's name it is standard output that cannot be written.
        if not _is_hydras(error) or (isinstance(error, OSError) and error.filename is None):
            raise
        if isinstance(error, OSError):
            message = f"Hydra cannot write {error.filename} ({error.strerror}): give hydra.run.dir or hydra.sweep.dir."
            raise RequestError(message) from error
        # Hydra's check of `group=VALUE`, where the value is a number or null, or one of its options.
        of_group = "Config group override" in str(error)
        fault = _cause(error) if isinstance(error, ValueError) else f"Hydra fails with this request ({error!r})"
        raise _no_option(overrides) if of_group else RequestError(f"{fault}. {_HELP}") from error


def _is_hydras(error: Exception) -> bool:
    """Whether the error comes from Hydra, and not from what it calls of ours."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [name for name in modules if name.startswith(("hydra.", "petl_bench."))][-1].startswith("hydra.")


def _explain(error: Exception, overrides: list[str]) -> RequestError:
    """Turns an error of Hydra or OmegaConf into a request error that names the key and the way out."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_choice(group, option, (name for name in error.options if not name.startswith("_")))
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if match := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        key, _, value = match.group(1).partition("=")
        one = shlex.quote(f'{key}="{value}"')
        return RequestError(
            f"{key}: {value} is more than one value: -m makes a run of each; write a list as {key}=[{value}], and one "
            f"value as {one}."
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(match.group(1), _known_settings(overrides))
    if match := re.search(r"Error merging override (\S+)", text):
        return RequestError(f"{match.group(1)}: {_cause(error)}. {_HELP}")
    if match := re.search(r"Could not append to config.*?'([^']+)'.*?already", text, re.DOTALL):
        return RequestError(f"+{match.group(1)}: this setting exists already, give it without the plus sign.")
    lines = text.splitlines()[: 1 if isinstance(error, MissingConfigException) else 2]
    return RequestError(f"{' '.join(line.strip() for line in lines).rstrip('.')}. {_HELP}")


def _unreadable(override: str) -> RequestError:
    """The error for an override that Hydra's grammar does not read: shows it with the quotation marks that it needs."""
    key, equals, value = override.partition("=")
    if not (key and equals):
        return RequestError(f"{override!r} is no setting: write key=value, without spaces around =. {_HELP}")
    is_list = value.startswith("[") and value.endswith("]")
    items = value[1:-1].split(",") if is_list else [value]
    quoted = ",".join('"{}"'.format(item.strip(" '\"").replace('"', '\\"')) for item in items)
    example = shlex.quote(f"{key}=[{quoted}]" if is_list else f"{key}={quoted}")
    return RequestError(
        f"{key}: the value {value} holds characters with a meaning of their own, or not all its quotation marks and "
        f"brackets: put quotation marks around it within those of the shell, as in {example}. {_HELP}"
    )


def _no_option(overrides: list[str]) -> RequestError:
    """The error for a group that is given something else than a name."""
    for override in overrides:
        group, _, option = override.partition("=")
        if group in _GROUPS and option not in option_names(group):
            return unknown_choice(group, option, option_names(group))
    return RequestError(f"A group takes the name of one of its options, as in method=lora. {_HELP}")


def _setting_names(config: DictConfig) -> list[str]:
    """The dotted keys of all settings of a config."""
    names: list[str] = []
    for key in map(str, config):
        node = OmegaConf.select(config, key, throw_on_missing=False)
        names += [f"{key}.{name}" for name in _setting_names(node)] if isinstance(node, DictConfig) else [key]
    return names


def _unknown_setting(key: str, known: list[str]) -> RequestError:
    if key in _FREE_MAPPINGS:
        return RequestError(f"{key} takes names of its own: add each with a plus sign, as in +{key}.NAME=VALUE.")
    parent = f"{key.rpartition('.')[0]}." if "." in key else ""
    siblings = sorted({name[len(parent) :].partition(".")[0] for name in known if name.startswith(parent)})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    there = f" There are {', '.join(parent + name for name in siblings)}." if siblings else ""
    return RequestError(f"{key} is not a setting here.{hint}{there}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0].rstrip(".!")


def _known_settings(overrides: list[str]) -> list[str]:
    """Keys of the config with the groups that the overrides choose, for suggestions; none if these do not compose."""
    options = [one for one in overrides if one.partition("=")[0] in _GROUPS and "," not in one]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return _setting_names(compose("config", overrides=options))
    except _CONFIG_ERRORS:
        return []
