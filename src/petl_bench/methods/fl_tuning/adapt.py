"""Puts new hidden units into the adapted layers."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.base import build_config, with_adapter
from petl_bench.methods.fl_tuning import FlTuningMethodConfig
from petl_bench.methods.fl_tuning.config import FlTuningConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: FlTuningMethodConfig, context: AdaptContext) -> nn.Module:
    """Widens the feed-forward networks.

    Raises:
        RequestError: for settings out of range.
    """
    settings = build_config(FlTuningConfig, config, layers_to_transform=context.layers_to_transform)
    return with_adapter(model, settings, context.anatomy)
