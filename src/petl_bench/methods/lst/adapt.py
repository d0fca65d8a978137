"""Puts the ladder's side network beside the encoder."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.base import build_config, whole_encoder, with_adapter
from petl_bench.methods.lst import LstMethodConfig
from petl_bench.methods.lst.config import LstConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: LstMethodConfig, context: AdaptContext) -> nn.Module:
    """Adds the side network, which reads every layer up to the head's.

    Raises:
        RequestError: for settings out of range, or a layer plan that adapts only some of the layers.
    """
    whole_encoder(config, context.plan)
    return with_adapter(model, build_config(LstConfig, config), context.anatomy)
