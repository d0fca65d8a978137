"""Freezes the backbone and leaves the head."""

from __future__ import annotations

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from petl_bench.methods.base import with_adapter
from petl_bench.methods.head import HeadMethodConfig
from petl_bench.methods.registry import AdaptContext


def adapt(model: nn.Module, config: HeadMethodConfig, context: AdaptContext) -> nn.Module:
    """Trains the head, or head and pooler; as an adapter without targets, so that stock PEFT saves and loads it."""
    pooler = context.anatomy.pooler if config.pooler else None
    settings = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=[pooler] if pooler else None)
    return with_adapter(model, settings, context.anatomy)
