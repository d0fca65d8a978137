"""The schema of a whole run, assembled from each room's own; Hydra stops here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.backbones.config import ATTENTION, WEIGHTS, BackboneConfig, LayersConfig
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.measure.config import MeasureConfig
from petl_bench.methods import registry
from petl_bench.methods.config import MethodConfig
from petl_bench.processes import gpu_may_be_there
from petl_bench.tasks.config import TaskConfig, check_task
from petl_bench.trackers.config import TRACKERS, TrackerConfig
from petl_bench.training.config import TrainConfig, check_train

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


def settled(cfg: RunConfig) -> RunConfig:
    """The run with what `auto` means on this machine in its place."""
    if cfg.train.precision == "auto" and not gpu_may_be_there():
        return replace(cfg, train=replace(cfg.train, precision="fp32"))
    from petl_bench.training.device import settled_precision

    return replace(cfg, train=replace(cfg.train, precision=settled_precision(cfg.train)))


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
