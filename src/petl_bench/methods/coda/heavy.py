"""The frozen layer where routed tokens attend to all tokens: queries of the few, keys and values of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from petl_bench.backbones.anatomy import Anatomy


class AttendToAll:
    """Runs a layer whose norms follow the sums, part by part, as transformers has no call for it.

    Args:
        layer: The frozen layer.
        anatomy: Where its parts are.
        config: The model's.
    """

    def __init__(self, layer: nn.Module, anatomy: Anatomy, config: Any) -> None:
        self.layer, self.anatomy = layer, anatomy
        self.num_heads = config.num_attention_heads
        names = ("attention_probs_dropout_prob", "attention_dropout")
        self.attention_dropout = next(float(getattr(config, name)) for name in names if hasattr(config, name))
        self.activation = ACT2FN[getattr(config, anatomy.activation_key)]

    def __call__(self, selected: torch.Tensor, everything: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The layer's output for `selected`, shape (batch, k, d), given `everything`, shape (batch, tokens, d)."""
        part = self._part
        dropout = self.attention_dropout if self.layer.training else 0.0
        context = nn.functional.scaled_dot_product_attention(
            self._heads(part("query", selected)),
            self._heads(part("key", everything)),
            self._heads(part("value", everything)),
            attn_mask=mask,
            dropout_p=dropout,
        )
        update = self._end("attention_output", "attention_end", context.transpose(1, 2).flatten(2))
        first, second = (self.layer.get_submodule(norm) for norm in self.anatomy.norms)
        attended = first(update + selected)
        hidden = self.activation(part("feed_forward_in", attended))
        output: torch.Tensor = second(self._end("feed_forward_out", "feed_forward_end", hidden) + attended)
        return output

    def _part(self, role: str, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer.get_submodule(getattr(self.anatomy, role))(x)
        return output

    def _end(self, projection: str, end: str, x: torch.Tensor) -> torch.Tensor:
        """A projection, and the dropout after it where there is one."""
        projected = self._part(projection, x)
        return (
            projected if getattr(self.anatomy, projection) == getattr(self.anatomy, end) else self._part(end, projected)
        )

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
