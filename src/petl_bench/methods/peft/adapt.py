"""Applies a PEFT type by name, with targets from the anatomy table where the user gives none."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.base import with_adapter
from petl_bench.methods.peft import PeftMethodConfig
from petl_bench.methods.registry import AdaptContext

# (IA)3 rescales keys, values and the feed-forward input; most other types take what LoRA takes.
_IA3_ROLES = ("key", "value", "feed_forward_out")
_DEFAULT_ROLES = ("query", "value")


def adapt(model: nn.Module, config: PeftMethodConfig, context: AdaptContext) -> nn.Module:
    """Builds the type's config class from `config.args` and applies it.

    Raises:
        RequestError: for an unknown type or argument, or one that PEFT refuses for this architecture.
    """
    known = {str(peft_type.value): cls for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if config.type.upper() not in known:
        raise unknown_choice("method.type", config.type, known)
    config_class = known[config.type.upper()]
    names = {field.name for field in fields(config_class)}
    for name in config.args:
        if name not in names:
            raise unknown_choice("method.args", name, names)
    return with_adapter(model, _build(config_class, _defaults(names, config, context) | config.args), context.anatomy)


def _defaults(names: set[str], config: PeftMethodConfig, context: AdaptContext) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    pattern = context.anatomy.layer_pattern
    if "feedforward_modules" in names:
        defaults["target_modules"] = pattern(context.plan.adapted, _IA3_ROLES)
        defaults["feedforward_modules"] = pattern(context.plan.adapted, ("feed_forward_out",))
    elif "target_modules" in names:
        defaults["target_modules"] = pattern(context.plan.adapted, _DEFAULT_ROLES)
    elif not context.plan.everything:
        raise RequestError(f"method.type={config.type} adapts no single layers: use layers=all.")
    if config.type.upper() == PeftType.ADALORA.value:
        defaults["total_step"] = context.num_training_steps
    if "num_virtual_tokens" in names:
        defaults["num_virtual_tokens"] = 20
    return defaults


def _build(config_class: type[PeftConfig], arguments: dict[str, Any]) -> PeftConfig:
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise RequestError(f"method.args do not fit {config_class.__name__}: {error}") from error
