"""What computes a model's attention: a function of transformers' interface, or the architecture's own."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Kernels that take a mask for every pair of query and key.
MASKED_PAIRWISE = ("eager", "sdpa")


def attention_kernel(attention: nn.Module, name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function of this name for an attention module.

    Args:
        attention: The module.
        name: As `attn_implementation` has it.
    """
    if name == "eager":
        # Each architecture has its own, beside its attention module.
        own: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
        own = sys.modules[type(attention).__module__].eager_attention_forward
        return own
    return ALL_ATTENTION_FUNCTIONS[name]
