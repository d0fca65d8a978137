"""Puts routers and parallel adapters beside the adapted layers."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.base import build_config, with_adapter
from petl_bench.methods.coda import CodaMethodConfig
from petl_bench.methods.coda.config import CodaConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: CodaMethodConfig, context: AdaptContext) -> nn.Module:
    """Wraps every adapted layer.

    Raises:
        RequestError: for settings out of range, or attention=k2all where the architecture has no place for it.
    """
    settings = build_config(CodaConfig, config, layers_to_transform=context.layers_to_transform)
    return with_adapter(model, settings, context.anatomy)
