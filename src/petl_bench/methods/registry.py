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
from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

from petl_bench.backbones.anatomy import Anatomy, LayerPlan, is_within
from petl_bench.errors import RequestError, first_line, unknown_choice
from petl_bench.process import check_name, load_plugins
from petl_bench.settings import MISSING, setting

ENTRY_POINT_GROUP = "petl_bench.methods"

_RATE = "The learning rate where train.learning_rate is not given."


@dataclass
class MethodConfig:
    """The fields of the `method` section in every run's config; a subclass adds the options of the method."""

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

        A method may have its own option `init`; a value that is not among its `choices` is then a folder.
        """
        declared = next(option for option in dataclasses.fields(self) if option.name == "init")
        if declared.default is None:
            return self.init
        choices = declared.metadata.get("choices")
        return self.init if choices is not None and self.init not in choices else None

    def __reduce__(self) -> tuple[Any, ...]:
        # The subclasses are made at run time, so pickle cannot import them; it gets them from the registry instead.
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
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

    A method names either the PEFT config that its options are passed to, or its own function that adapts the model.

    Attributes:
        name: Name of the method, as in `method=NAME`.
        summary: One line for `petl-bench list methods`.
        origin: `paper`, `authors' code`, `reconstruction`, or the library that implements the method.
        settings: Dataclass that declares the options, each with `petl_bench.settings.setting`. None if the method has
            no options.
        peft_config: "module:Class" of the PEFT config. The options are passed to its fields of the same names.
        tuner: "module:Class" of our own PEFT tuner, which is registered in PEFT together with `peft_config`.
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

    @property
    def searched_sizes(self) -> dict[str, list[Any]]:
        """The values of the settings that a search tries, by setting."""
        options = dataclasses.fields(self.settings) if self.settings is not None else ()
        return {f"method.{option.name}": option.metadata["search"] for option in options if "search" in option.metadata}

    def resolve(self, name: str) -> Any:
        """Imports what "module:name" stands for.

        Raises:
            RequestError: If it cannot be imported.
        """
        try:
            return pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise RequestError(f"method={self.name}: {name} cannot be imported: {first_line(error)}.") from error


_METHODS: dict[str, Method] = {}
# Names of the methods of other packages, and the reasons why some of these are left out, by name.
_PLUGINS: set[str] = set()
_BROKEN: dict[str, str] = {}
# The tuners that this module has registered in PEFT, by the name of their method.
_REGISTERED: dict[str, str] = {}
_stage = "new"

_log = logging.getLogger(__name__)


def register(method: Method) -> Method:
    """Adds a method to the registry.

    Raises:
        RequestError: If the name cannot be part of a folder's name.
        ValueError: If another method has this name.
    """
    check_name("method", method.name)
    known = _METHODS.get(method.name)
    if known is not None and known != method:
        raise ValueError(f"There are two methods named {method.name!r}: {known.summary!r} and {method.summary!r}.")
    _METHODS[method.name] = method
    return method


def _load_all() -> None:
    """Imports every folder of this package, each of which registers itself, then the methods of other packages."""
    global _stage
    # Modules that are imported here may call this function themselves.
    if _stage != "new":
        return
    _stage = "loading"
    package = importlib.import_module("petl_bench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"petl_bench.methods.{module.name}")
    _BROKEN.update(load_plugins(ENTRY_POINT_GROUP, "method", _add_plugin))
    _stage = "loaded"
    if "peft" in sys.modules:
        register_tuners()


def _add_plugin(method: Any) -> None:
    if not isinstance(method, Method):
        raise TypeError(f"it is no Method but {type(method).__name__}")
    # Built here, so that options from which no config can be built are reported as those of a plugin.
    _ = method.config
    register(method)
    _PLUGINS.add(method.name)


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
    if name not in methods:
        raise unknown_method(name, methods)
    return methods[name]


def unknown_method(name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is no method: why the plugin of this name cannot be used, or what methods there are."""
    _load_all()
    if name in _BROKEN:
        return RequestError(f"{_BROKEN[name]}. Fix or uninstall it.")
    return unknown_choice("method", name, known)


def on_peft_import(_peft: ModuleType) -> None:
    """Registers our tuners as soon as PEFT is imported; `petl_bench/__init__.py` installs this hook."""
    # If `methods.base` imports PEFT, the tuners cannot be imported before it is complete: it registers them itself.
    if not _is_being_imported("petl_bench.methods.base"):
        register_tuners()


def register_tuners() -> None:
    """Registers the tuner of every method that has its own; a second call changes nothing.

    A method whose own module is being imported at the moment is left out. It is registered when the first of its
    configs is created.
    """
    methods = all_methods().values()
    if _stage != "loaded":
        return
    for method in methods:
        if method.tuner is None or method.peft_config is None:
            continue
        module = method.tuner.partition(":")[0]
        if _is_being_imported(module.rpartition(".")[0] or module):
            continue
        try:
            register_tuner(method.name, method.peft_config, method.tuner)
        except Exception as error:
            if method.name not in _PLUGINS:
                raise
            # Importing a tuner may register all others meanwhile, and report this one.
            if _METHODS.pop(method.name, None) is None:
                continue
            _BROKEN[method.name] = f"The tuner of the plugin method {method.name!r} cannot be used: {first_line(error)}"
            _log.warning("%s; it is left out: fix or uninstall it", _BROKEN[method.name])


def register_tuner(name: str, config: str, model: str) -> None:
    """Registers a tuner in PEFT under the type `name.upper()`; a second call with the same tuner changes nothing.

    Args:
        name: Name in lower case; `name_` is the prefix of the tuner's parameters.
        config: "module:Class" of the `peft.PeftConfig`.
        model: "module:Class" of the `peft.tuners.tuners_utils.BaseTuner`.

    Raises:
        ValueError: If PEFT has another tuner of this type.
    """
    from peft import PeftType
    from peft.utils import register_peft_method

    if _REGISTERED.get(name) == model:
        return
    if name.upper() in PeftType.__members__:
        raise ValueError(f"PEFT has a type {name.upper()} already: give the method another name")
    classes = pkgutil.resolve_name(config), pkgutil.resolve_name(model)
    _add_peft_type(name.upper())
    register_peft_method(name=name, config_cls=classes[0], model_cls=classes[1])
    _REGISTERED[name] = model


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


def _is_being_imported(package: str) -> bool:
    """Whether the import of this package or module, or of one inside it, has begun and is not complete."""
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if is_within(name, [package]) and hasattr(module, "__spec__")
    )
