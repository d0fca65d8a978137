"""The methods there are. A method joins by calling `register` or through the entry-point group `petl_bench.methods`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.config import MethodConfig

if TYPE_CHECKING:
    from torch import nn

    from petl_bench.methods.context import AdaptContext

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
