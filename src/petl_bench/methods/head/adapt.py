"""Freezes the backbone and leaves the head."""

from __future__ import annotations

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from petl_bench.methods.config import MethodConfig
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.wrap import with_adapter


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Trains the head alone; as an adapter without targets, so that stock PEFT saves and loads it."""
    return with_adapter(model, LoraConfig(target_modules=DUMMY_TARGET_MODULES), context.anatomy)
