"""Ladder side-tuning: the side network, whose blocks each read a layer of the backbone, and its PEFT tuner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from petl_bench.methods.base import TunerConfig
from petl_bench.methods.lst import LstSettings
from petl_bench.methods.modules import SideBlock, SideTuner, fitting_heads, pool


@dataclass
class LstConfig(LstSettings, TunerConfig):
    """Configuration of an `LstModel`: the options of `LstSettings`.

    It has no `modules_to_save`, as the side network has its own classifier.

    Args:
        target_modules: Filled in by the tuner: the encoder and the classifier.
    """

    method = "lst"

    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1 or (self.width is not None and self.width < 1):
            raise ValueError("reduction and width must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")


class LadderNetwork(nn.Module):
    """`s_0 = D_0 h_0`; for every layer l `s_l = block_l(mu_l s_(l-1) + (1 - mu_l) D_l h_l)`; at last up to width d.

    `mu = sigmoid(alpha / T)` with alpha 0 at the start. The blocks start at random: the authors cut theirs from the
    backbone by Fisher scores.

    Args:
        num_layers: Layers L of the backbone.
        hidden_size: Its width d.
        num_heads: Its number of heads; the side network has the largest number up to it that divides its own width.
        config: An `LstConfig`.
        pool: How the states of the tokens are pooled; None: as the config says.
    """

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int, config: Any, pool: str | None = None) -> None:
        super().__init__()
        width = config.width or max(1, hidden_size // config.reduction)
        read_layers = [layer for layer in range(num_layers) if layer not in config.drop_layers]
        if not read_layers or not set(config.drop_layers) <= set(range(num_layers)):
            raise ValueError(
                f"drop_layers={list(config.drop_layers)} must leave some of the layers 0..{num_layers - 1}"
            )
        self.states = [0, *(layer + 1 for layer in read_layers)]
        self.num_states, self.temperature, self.pool = num_layers + 1, config.temperature, pool or config.pool
        self.downs = nn.ModuleList(nn.Linear(hidden_size, width) for _ in self.states)
        self.gates = nn.Parameter(torch.zeros(len(read_layers)))
        heads = fitting_heads(width, num_heads)
        self.blocks = nn.ModuleList(SideBlock(width, heads, config.dropout) for _ in read_layers)
        self.up = nn.Linear(width, hidden_size)

    def forward(self, states: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Pooled features, shape (batch, d); without pooling (batch, tokens, d).

        Args:
            states: The L + 1 hidden states, each of shape (batch, tokens, d).
            mask: 1 for tokens, 0 for padding, shape (batch, tokens).

        Raises:
            ValueError: If there are too few or too many states.
        """
        if len(states) != self.num_states:
            raise ValueError(f"the ladder was built for {self.num_states} hidden states and got {len(states)}")
        pairs = zip(self.downs, self.states, strict=True)
        start, *rungs = [down(states[index].to(self.up.weight.dtype)) for down, index in pairs]
        side = start
        for block, rung, gate in zip(self.blocks, rungs, torch.sigmoid(self.gates / self.temperature), strict=True):
            side = block(gate * side + (1 - gate) * rung, mask)
        return pool(self.up(side), mask, self.pool)


class LstModel(SideTuner):
    """Ladder side-tuning (Sung et al., NeurIPS 2022, arXiv 2206.06522), carried over to encoders.

    Args:
        model: A sequence classifier or a tagger.
        config: An `LstConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "lst_"

    def new_network(self, config: LstConfig) -> nn.Module:
        """See `SideTuner.new_network`."""
        shape: Any = self.model.config
        sizes = self.anatomy.num_layers(shape), shape.hidden_size, shape.num_attention_heads
        return LadderNetwork(*sizes, config, self.pool_of(config))
