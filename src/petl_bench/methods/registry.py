"""The methods by name: those of this package, and those of other packages (entry-point group `petl_bench.methods`).

This module and every `methods/<name>/__init__.py` import neither torch nor PEFT, so that `petl-bench list` and
`--help` answer at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
import sys
from dataclasses import dataclass, field, make_dataclass
from functools import cache, cached_property
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, ClassVar

from omegaconf import MISSING

from petl_bench.backbones.anatomy import Anatomy, LayerPlan
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.process import check_name
from petl_bench.settings import setting

ENTRY_POINT_GROUP = "petl_bench.methods"

_RATE = "The learning rate where train.learning_rate is not given."


@dataclass
class MethodConfig:
    """What the `method` section of every run's config holds; the options of the method follow in a subclass."""

    name: str = MISSING
    default_learning_rate: float = setting(MISSING, _RATE)
    default_head_learning_rate: float | None = setting(
        None, "The head's learning rate where train.head_learning_rate is not given; null: that of the method."
    )
    init: str | None = setting(
        None,
        "A folder with an adapter to start from: its own, that of a run, or of `petl-bench pretrain`; null: a new one.",
        is_path=True,
    )

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @property
    def start(self) -> str | None:
        """The folder that `init` names, if any.

        A method may have an option `init` of its own; what is none of its `choices` is then a folder.
        """
        declared = next(one for one in dataclasses.fields(self) if one.name == "init")
        if declared.default is None:
            return self.init
        choices = declared.metadata.get("choices")
        return self.init if choices is not None and self.init not in choices else None

    def __reduce__(self) -> tuple[Any, ...]:
        # The subclasses are made at run time, so pickle cannot import them; it gets them from the registry instead.
        values = {known.name: getattr(self, known.name) for known in dataclasses.fields(self)}
        return _make_config, (self.name, values)


def _make_config(name: str, values: dict[str, Any]) -> MethodConfig:
    return get_method(name).config(**values)


@dataclass(frozen=True)
class AdaptContext:
    """What a method may know about the run in which it adapts a model.

    Attributes:
        anatomy: Where the layers, projections, norms and the head of this architecture are.
        plan: Which layers are adapted.
        num_training_steps: Number of updates to come, for methods with a schedule.
    """

    anatomy: Anatomy
    plan: LayerPlan
    num_training_steps: int

    @property
    def layers_to_transform(self) -> list[int] | None:
        """The adapted layers as PEFT counts them, from 0; None if the whole backbone is adapted."""
        return None if self.plan.everything else [layer - 1 for layer in self.plan.adapted]


@dataclass(frozen=True)
class Method:
    """One way to adapt a backbone.

    A method either names the PEFT config that its options go to, or a function of its own that adapts the model.

    Attributes:
        name: Name of the method, as in `method=NAME`.
        summary: One line for `petl-bench list methods`.
        origin: `paper`, `authors' code`, `reconstruction`, or the library that implements the method.
        settings: Dataclass that declares the options: name, type, default, and a help text in the field's metadata.
            None if the method has no options.
        peft_config: "module:Class" of the PEFT config. The options are passed to its fields of the same names.
        tuner: "module:Class" of a PEFT tuner of our own, which is registered in PEFT together with `peft_config`.
        adapt: "module:function" called with the model, the `MethodConfig` and an `AdaptContext`; it returns the adapted
            model. None: the model gets an adapter of `peft_config`.
        pretraining: "module:Class" of the module whose forward pass gives the loss of a training phase without labels,
            which `petl-bench pretrain` runs. None: the method has none.
        default_learning_rate: Learning rate of a method without a `conf/method/NAME.yaml`, which sets its own.
    """

    name: str
    summary: str
    origin: str
    settings: type | None = None
    peft_config: str | None = None
    tuner: str | None = None
    adapt: str | None = None
    pretraining: str | None = None
    default_learning_rate: float = 1e-3

    @cached_property
    def config(self) -> type[MethodConfig]:
        """Schema of the `method` section: the options together with the fields of `MethodConfig`."""
        return make_dataclass(
            f"{self.name.title().replace('_', '')}MethodConfig",
            [
                ("name", str, field(default=self.name)),
                ("default_learning_rate", float, setting(self.default_learning_rate, _RATE)),
            ],
            # The fields come in the reverse order of the bases: the options follow the name and the learning rates.
            bases=(self.settings, MethodConfig) if self.settings else (MethodConfig,),
        )


_METHODS: dict[str, Method] = {}
# Why a method of another package could not be imported, by its name.
_BROKEN: dict[str, str] = {}

_log = logging.getLogger(__name__)


def register(method: Method) -> Method:
    """Adds a method to the registry.

    Raises:
        RequestError: If the name cannot be part of a folder's.
        ValueError: If another method has this name.
    """
    check_name("method", method.name)
    known = _METHODS.get(method.name)
    if known is not None and known != method:
        raise ValueError(f"There are two methods named {method.name!r}: {known.summary!r} and {method.summary!r}.")
    _METHODS[method.name] = method
    return method


@cache
def _load_all() -> None:
    """Imports every folder of this package, then the methods of other packages; each registers itself."""
    package = importlib.import_module("petl_bench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"petl_bench.methods.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
        except Exception as error:
            _BROKEN[entry.name] = f"The plugin method {entry.name!r} ({entry.value}) cannot be imported: {error}"
            _log.warning("%s; it is left out: mend or uninstall it", _BROKEN[entry.name])
            continue
        if isinstance(loaded, Method):
            register(loaded)


def all_methods() -> dict[str, Method]:
    """Returns every method by name, in alphabetical order."""
    _load_all()
    return dict(sorted(_METHODS.items()))


def get_method(name: str) -> Method:
    """Returns the method of this name.

    Raises:
        RequestError: If there is none.
    """
    methods = all_methods()
    if name in _BROKEN and name not in methods:
        raise RequestError(f"{_BROKEN[name]}. Mend or uninstall it.")
    if name not in methods:
        raise unknown_choice("method", name, methods)
    return methods[name]


def on_peft_import(_peft: ModuleType) -> None:
    """Registers our tuners as soon as PEFT is imported; `petl_bench/__init__.py` installs this hook."""
    # If `methods.base` is what imports PEFT, the tuners cannot be imported before it is complete: it registers them.
    if not _is_being_imported("petl_bench.methods.base"):
        register_tuners()


def register_tuners() -> None:
    """Registers the tuner of every method that has one of its own; a second call changes nothing.

    A method whose own module is being imported at the moment is left out. It is registered when the first of its
    configs is created.
    """
    for method in all_methods().values():
        if method.tuner is None or method.peft_config is None:
            continue
        if not _is_being_imported(method.tuner.partition(":")[0].rpartition(".")[0] + "."):
            register_tuner(method.name, method.peft_config, method.tuner)


def register_tuner(name: str, config: str, model: str) -> None:
    """Registers a tuner in PEFT under the type `name.upper()`; a second call with the same name changes nothing.

    Args:
        name: Name in lower case; `name_` is the prefix of the tuner's parameters.
        config: "module:Class" of the `peft.PeftConfig`.
        model: "module:Class" of the `peft.tuners.tuners_utils.BaseTuner`.
    """
    from peft import PeftType
    from peft.utils import register_peft_method

    if name.upper() not in PeftType.__members__:
        classes = pkgutil.resolve_name(config), pkgutil.resolve_name(model)
        _add_peft_type(name.upper())
        register_peft_method(name=name, config_cls=classes[0], model_cls=classes[1])


def _add_peft_type(name: str) -> None:
    """Adds a member to the enum `PeftType`."""
    from peft import PeftType

    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Python 3.12 and later look members up as class attributes; the enum's own __setattr__ refuses new ones.
    type.__setattr__(PeftType, name, member)


def _is_being_imported(prefix: str) -> bool:
    """Whether the import of a module whose name starts with `prefix` has begun and is not complete."""
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if name.startswith(prefix) and hasattr(module, "__spec__")
    )
