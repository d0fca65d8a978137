"""LoRA, as implemented by PEFT (Hu et al., ICLR 2022, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petl_bench.backbones.anatomy import PROJECTION_ROLES
from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.registry import AdaptContext, Method, register
from petl_bench.settings import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass
class LoraSettings:
    """Options of LoRA, for the fields of `peft.LoraConfig`."""

    r: int = setting(8, "Rank of the updates.", search=[2, 4, 8, 16, 32])
    alpha: int = setting(16, "Scale of the updates: they are multiplied by alpha / r.")
    # PEFT's default. 0.1 keeps two more tensors for each projection: 14 % more peak memory on BERT-base at 32 x 128.
    dropout: float = setting(0.0, "Dropout on the input of the updates.")
    targets: list[str] = setting(
        ["query", "value"],
        "Projections that are updated: any of query, key, value, attention_output, feed_forward_in, feed_forward_out.",
    )


def adapt(model: nn.Module, config: Any, context: AdaptContext) -> nn.Module:
    """Adds low-rank updates to the target projections of the adapted layers.

    Raises:
        RequestError: If the rank is below 1 or a target is unknown.
    """
    from peft import LoraConfig

    from petl_bench.methods.base import with_adapter

    if config.r < 1:
        raise RequestError(f"method.r={config.r} must be at least 1.")
    for target in config.targets:
        if target not in PROJECTION_ROLES:
            raise unknown_choice("method.targets", target, PROJECTION_ROLES)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=context.anatomy.layer_pattern(context.plan.adapted, config.targets),
    )
    return with_adapter(model, lora, context.anatomy)


register(
    Method(
        name="lora",
        summary="low-rank updates of chosen projections",
        origin="PEFT",
        settings=LoraSettings,
        adapt="petl_bench.methods.lora:adapt",
    )
)
