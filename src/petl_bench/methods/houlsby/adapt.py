"""Puts bottleneck adapters into the adapted layers."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.base import build_config, with_adapter
from petl_bench.methods.houlsby import HoulsbyMethodConfig
from petl_bench.methods.houlsby.config import HoulsbyConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: HoulsbyMethodConfig, context: AdaptContext) -> nn.Module:
    """Adds the adapters; with a narrower layer plan, only the norms of its layers are trained.

    Raises:
        RequestError: for settings out of range, or a variant that does not fit the architecture.
    """
    settings = build_config(HoulsbyConfig, config, layers_to_transform=context.layers_to_transform)
    return with_adapter(model, settings, context.anatomy)
