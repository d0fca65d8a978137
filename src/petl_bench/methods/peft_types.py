"""Makes our tuners known to PEFT, which lists its types in a closed enum."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from petl_bench.methods import registry


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


def register_tuners(_peft: ModuleType | None = None) -> None:
    """Imports the module of every method that brings a PEFT tuner of its own; each registers itself.

    A method whose own import is what brought PEFT in registers itself when that import is through.
    """
    for method in registry.all_methods().values():
        if method.tuner and not _being_imported(method.tuner.rpartition(".")[0]):
            importlib.import_module(method.tuner)


def _being_imported(package: str) -> bool:
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if name.startswith(f"{package}.") and hasattr(module, "__spec__")
    )
