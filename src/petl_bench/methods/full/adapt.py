"""Chooses the parameters that full fine-tuning trains."""

from __future__ import annotations

from torch import nn

from petl_bench.backbones.anatomy import is_within
from petl_bench.methods.registry import AdaptContext, MethodConfig


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Trains everything; with a narrower layer plan, its layers, what lies above all layers, and the head.

    Embeddings are trained only where every layer is and the head is on top (Xie et al. 2022, their code).
    """
    anatomy, plan = context.anatomy, context.plan
    for name, parameter in model.named_parameters():
        parameter.requires_grad = (
            plan.everything
            or anatomy.layer_number(name) in plan.adapted
            or is_within(name, anatomy.above_layers + anatomy.head)
        )
    return model
