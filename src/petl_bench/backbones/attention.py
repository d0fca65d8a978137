"""Calls attention from outside a model: its kernels, and a layer in which only some tokens attend to all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.load import attention_implementation

# Kernels that accept a mask for every pair of query and key.
MASKED_PAIRWISE = ("eager", "sdpa")


def attention_kernel(attention: nn.Module, name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function of this name for an attention module.

    Args:
        attention: The module.
        name: The kernel's name, as in `attn_implementation`.
    """
    if name == "eager":
        # Each architecture has its own function, in the module of its attention class.
        own: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
        own = sys.modules[type(attention).__module__].eager_attention_forward
        return own
    return ALL_ATTENTION_FUNCTIONS[name]


# The parts of a layer that are called, by their names in the anatomy table. Only the norms are called besides these.
CALLED_ROLES = (
    *("query", "key", "value", "attention_output", "attention_end"),
    *("feed_forward_in", "feed_forward_out", "feed_forward_end"),
)


class AttendToAll:
    """Runs a layer whose norms follow the sums, for some of its tokens. Transformers has no call for this.

    Args:
        layer: The layer.
        anatomy: Where its parts are.
        config: The model's config.
    """

    def __init__(self, layer: nn.Module, anatomy: Anatomy, config: Any) -> None:
        self.layer, self.anatomy = layer, anatomy
        self.num_heads = config.num_attention_heads
        self.activation = ACT2FN[getattr(config, anatomy.activation_key)]

    def __call__(self, selected: torch.Tensor, everything: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The layer's output for `selected`, shape (batch, k, d), given `everything`, shape (batch, tokens, d).

        The mask is None or has the model's own format, shape (batch, 1, k or 1, tokens).
        """
        part = self._part
        attention: Any = self.layer.get_submodule(self.anatomy.self_attention)
        kernel = attention_implementation(attention.config)
        assert kernel
        context, _ = attention_kernel(attention, kernel)(
            attention,
            self._heads(part("query", selected)),
            self._heads(part("key", everything)),
            self._heads(part("value", everything)),
            mask,
            dropout=attention.dropout.p if attention.training else 0.0,
            scaling=attention.scaling,
        )
        update = self._end("attention_output", "attention_end", context.flatten(2))
        first, second = (self.layer.get_submodule(norm) for norm in self.anatomy.norms)
        attended = first(update + selected)
        hidden = self.activation(part("feed_forward_in", attended))
        output: torch.Tensor = second(self._end("feed_forward_out", "feed_forward_end", hidden) + attended)
        return output

    def _part(self, role: str, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer.get_submodule(getattr(self.anatomy, role))(x)
        return output

    def _end(self, projection: str, end: str, x: torch.Tensor) -> torch.Tensor:
        """Applies a projection, and the dropout after it if there is one."""
        projected = self._part(projection, x)
        return (
            projected if getattr(self.anatomy, projection) == getattr(self.anatomy, end) else self._part(end, projected)
        )

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
