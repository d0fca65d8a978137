"""What a method wants done around training: a call after each update, and state beside its parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def after_update_hook(model: nn.Module) -> Callable[[int], None] | None:
    """What to call after each update with its number (from 0), gradients still there; AdaLoRA reallocates ranks so."""
    return getattr(getattr(model, "base_model", None), "update_and_allocate", None)


def rank_patterns(model: nn.Module) -> dict[str, Any]:
    """Ranks that AdaLoRA has settled on by adapter; they belong to the weights, and PEFT keeps them in the config."""
    configs = getattr(model, "peft_config", {})
    return {
        name: copy.deepcopy(config.rank_pattern) for name, config in configs.items() if hasattr(config, "rank_pattern")
    }


def restore_rank_patterns(model: nn.Module, patterns: dict[str, Any]) -> None:
    """Puts back what `rank_patterns` gave when the weights were kept."""
    for name, pattern in patterns.items():
        model.peft_config[name].rank_pattern = pattern  # type: ignore[union-attr, index]
