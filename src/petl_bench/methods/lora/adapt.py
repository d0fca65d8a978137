"""Applies PEFT's LoRA to the projections that the anatomy table names."""

from __future__ import annotations

from peft import LoraConfig
from torch import nn

from petl_bench.backbones.anatomy import PROJECTION_ROLES
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.base import with_adapter
from petl_bench.methods.lora import LoraMethodConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: LoraMethodConfig, context: AdaptContext) -> nn.Module:
    """Adds low-rank updates to `config.targets` of the adapted layers.

    Raises:
        RequestError: for a rank below 1 or an unknown target.
    """
    if config.r < 1:
        raise RequestError(f"method.r={config.r} must be at least 1.")
    for target in config.targets:
        if target not in PROJECTION_ROLES:
            raise unknown_choice("method.targets", target, PROJECTION_ROLES)
    return with_adapter(
        model,
        LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=context.anatomy.layer_pattern(context.plan.adapted, config.targets),
        ),
        context.anatomy,
    )
