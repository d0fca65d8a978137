"""The methods there are, by name: from this package, and through the entry-point group `petl_bench.methods`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.layers import LayerPlan
from petl_bench.errors import RequestError, unknown_choice

if TYPE_CHECKING:
    from torch import nn


@dataclass
class MethodConfig:
    """Base of every method's settings."""

    name: str = MISSING
    # train.learning_rate where the user gives none.
    default_learning_rate: float = 1e-3
    # train.head_learning_rate likewise; null: the head learns at the method's rate.
    default_head_learning_rate: float | None = None


@dataclass(frozen=True)
class AdaptContext:
    """The model's anatomy, the layers to adapt, and the length of the training to come.

    Attributes:
        anatomy: Where layers, projections, norms and head of this architecture are.
        plan: Which layers are adapted.
        num_training_steps: Number of updates, for methods that schedule themselves by it.
    """

    anatomy: Anatomy
    plan: LayerPlan
    num_training_steps: int

    @property
    def layers_to_transform(self) -> list[int] | None:
        """The adapted layers as PEFT counts them, from 0; None where the whole backbone is adapted."""
        return None if self.plan.everything else [layer - 1 for layer in self.plan.adapted]


ENTRY_POINT_GROUP = "petl_bench.methods"


@dataclass(frozen=True)
class Method:
    """One way to adapt a backbone.

    Attributes:
        name: What `method=NAME` says.
        summary: One line for `petl-bench list methods`.
        origin: `paper`, `authors' code`, `reconstruction` or the library that implements it.
        config: Dataclass of its settings; light to import.
        adapt: "module:function"; imported when first used, so that `petl-bench --help` stays fast.
        tuner: The module that registers a PEFT tuner of its own, where the method has one.
        ships_yaml: Whether conf/method/NAME.yaml exists; otherwise the dataclass defaults serve.
    """

    name: str
    summary: str
    origin: str
    config: type[MethodConfig]
    adapt: str
    tuner: str | None = None
    ships_yaml: bool = False

    def load_adapt(self) -> Callable[[nn.Module, MethodConfig, AdaptContext], nn.Module]:
        """Imports and returns the function that adapts a model."""
        import peft  # noqa: F401 (first, so that all tuners are registered in order)

        function: Callable[[nn.Module, MethodConfig, AdaptContext], nn.Module] = pkgutil.resolve_name(self.adapt)
        return function


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Adds a method.

    Raises:
        ValueError: where another method has this name.
    """
    known = _METHODS.get(method.name)
    if known is not None and known != method:
        raise ValueError(f"There are two methods named {method.name!r}: {known.adapt} and {method.adapt}.")
    _METHODS[method.name] = method
    return method


@cache
def _load_all() -> None:
    """Imports every method folder beside this file, then those that other packages bring."""
    package = importlib.import_module("petl_bench.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"petl_bench.methods.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
        except Exception as error:
            raise RequestError(
                f"The plugin method {entry.name!r} ({entry.value}) cannot be imported: {error}. Mend or uninstall it."
            ) from error
        if isinstance(loaded, Method):
            register(loaded)


def all_methods() -> dict[str, Method]:
    """Every method by name, in alphabetical order."""
    _load_all()
    return dict(sorted(_METHODS.items()))


def get_method(name: str) -> Method:
    """Returns the method of this name.

    Raises:
        RequestError: where there is none.
    """
    methods = all_methods()
    if name not in methods:
        raise unknown_choice("method", name, methods)
    return methods[name]


def register_tuner(name: str, config: type, model: type) -> None:
    """Registers a tuner under the new `PeftType` NAME; a second call with the same name changes nothing.

    Args:
        name: Lower case; the prefix of its parameters is `name_`.
        config: Subclass of `peft.PeftConfig`.
        model: Subclass of `peft.tuners.tuners_utils.BaseTuner`.
    """
    from peft.utils import register_peft_method

    if _add_peft_type(name.upper()):
        register_peft_method(name=name, config_cls=config, model_cls=model)


def _add_peft_type(name: str) -> bool:
    """Adds a member to `PeftType`, as PEFT 0.21 refuses types outside the enum; False where it is there already."""
    from peft import PeftType

    if name in PeftType.__members__:
        return False
    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Python 3.12 and later look members up as class attributes; the enum's own __setattr__ refuses them.
    type.__setattr__(PeftType, name, member)
    return True


def on_peft_import(_peft: ModuleType) -> None:
    """Registers our tuners as soon as PEFT is imported, unless `methods.base` imports it, which does so at its end."""
    if not _being_imported("petl_bench.methods.base"):
        register_tuners()


def register_tuners() -> None:
    """Imports the module of every method that brings a PEFT tuner of its own; each registers itself.

    A method whose own import is what brought PEFT in registers itself when that import is through.
    """
    for method in all_methods().values():
        if method.tuner and not _being_imported(f"{method.tuner.rpartition('.')[0]}."):
            importlib.import_module(method.tuner)


def _being_imported(prefix: str) -> bool:
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if name.startswith(prefix) and hasattr(module, "__spec__")
    )
