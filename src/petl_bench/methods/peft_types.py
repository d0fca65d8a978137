"""Registers our tuners in PEFT, so that `PeftModel.from_pretrained` loads their adapters.

PEFT has `register_peft_method` for this purpose, but accepts only types that are members of its enum `PeftType`. Adding
a member to an enum is not supported by Python; `_add_peft_type` is the only place that does it.
"""

from __future__ import annotations

import pkgutil
import sys
from types import ModuleType
from typing import Any

from petl_bench.methods.registry import all_methods


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
