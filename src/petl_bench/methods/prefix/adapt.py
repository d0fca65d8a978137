"""Puts prefixes into the adapted layers."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.base import build_config, with_adapter
from petl_bench.methods.prefix import PrefixMethodConfig
from petl_bench.methods.prefix.config import PrefixConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: PrefixMethodConfig, context: AdaptContext) -> nn.Module:
    """Adds the prefixes.

    Raises:
        RequestError: for settings out of range.
    """
    settings = build_config(PrefixConfig, config, layers_to_transform=context.layers_to_transform)
    return with_adapter(model, settings, context.anatomy)
