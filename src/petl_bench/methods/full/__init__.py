"""Full fine-tuning: every parameter of the adapted layers is trained. Layer selection is the same on chosen layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petl_bench.backbones.anatomy import is_within
from petl_bench.methods.registry import AdaptContext, Method, MethodConfig, register

if TYPE_CHECKING:
    from torch import nn


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Makes all parameters trainable, or those of the adapted layers, of the modules above all layers, and of the head.

    The embeddings are trained only if every layer is adapted and the head reads the last one, as in the code of Xie et
    al. (2022).
    """
    anatomy, plan = context.anatomy, context.plan
    for name, parameter in model.named_parameters():
        parameter.requires_grad = (
            plan.everything
            or anatomy.layer_number(name) in plan.adapted
            or is_within(name, anatomy.above_layers + anatomy.head)
        )
    return model


register(
    Method(
        name="full",
        summary="every parameter is trained",
        origin="transformers",
        adapt="petl_bench.methods.full:adapt",
    )
)

register(
    Method(
        name="layer_selection",
        summary="full fine-tuning of the layers that layers=variability chooses",
        origin="paper, authors' code",
        # The layer plan makes the choice, and can do so for every method. What remains is full fine-tuning.
        adapt="petl_bench.methods.full:adapt",
    )
)
