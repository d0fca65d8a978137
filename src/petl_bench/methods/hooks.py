"""Hooks that a method asks the training loop to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def after_update_hook(model: nn.Module) -> Callable[[int], None] | None:
    """What to call after each update with its number (from 0), gradients still there; AdaLoRA reallocates ranks so."""
    return getattr(getattr(model, "base_model", None), "update_and_allocate", None)
