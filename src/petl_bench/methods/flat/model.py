"""FLAT: the side network that projects all layers and weighs them token by token, and its PEFT tuner."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from petl_bench.methods.base import TunerConfig
from petl_bench.methods.flat import FlatSettings
from petl_bench.methods.modules import SideBlock, SideTuner, fitting_heads, pool


@dataclass
class FlatConfig(FlatSettings, TunerConfig):
    """Configuration of a `FlatModel`: the options of `FlatSettings`.

    It has no `modules_to_save`, as the side network has its own classifier.

    Args:
        target_modules: Filled in by the tuner: the encoder and the classifier.
    """

    method = "flat"

    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1, or null")
        if self.num_blocks < 0:
            raise ValueError(f"num_blocks={self.num_blocks} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")


class LayerFusion(nn.Module):
    """Projects every hidden state to width r and takes each token's weighted mean over them.

    Args:
        num_states: Number of hidden states given, including the embeddings.
        hidden_size: Width d of the model.
        width: Width r.
        score: See `FlatConfig`.
        include_embeddings: Whether the first state is used.
    """

    def __init__(self, num_states: int, hidden_size: int, width: int, score: str, include_embeddings: bool) -> None:
        super().__init__()
        self.score, self.num_states = score, num_states
        self.first = num_states - 1 if score == "last" else (0 if include_embeddings else 1)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, width) for _ in range(self.first, num_states))
        if score == "dot":
            self.query = nn.Linear(width, width)
            # Without a bias: the same one for all layers cancels in the softmax over them.
            self.key = nn.Linear(width, width, bias=False)
            # Every token starts with the mean of the layers.
            nn.init.zeros_(self.query.weight)
            nn.init.zeros_(self.query.bias)
        elif score == "additive":
            self.hidden = nn.Linear(width, width)
            self.vector = nn.Parameter(torch.zeros(width))
        elif score == "scalar":
            self.scalars = nn.Parameter(torch.zeros(len(self.projections)))
            self.gamma = nn.Parameter(torch.ones(()))

    def project(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Normed projections, shape (batch, tokens, layers, r).

        Raises:
            ValueError: If there are too few or too many states.
        """
        if len(states) != self.num_states:
            raise ValueError(f"FLAT was built for {self.num_states} hidden states and got {len(states)}")
        pairs = zip(self.projections, states[self.first :], strict=True)
        dtype = next(self.parameters()).dtype
        projected = torch.stack([projection(state.to(dtype)) for projection, state in pairs], dim=2)
        # Without scale and shift: layers differ much in norm, and weights across them would mislead.
        return nn.functional.layer_norm(projected, projected.shape[-1:])

    def layer_weights(self, projected: torch.Tensor) -> torch.Tensor:
        """Weights that sum to 1 over the layers, shape (batch, tokens, layers)."""
        if self.score == "dot":
            query, keys = self.query(projected[:, :, -1]), self.key(projected)
            scores = (keys @ query[..., None]).squeeze(-1) / math.sqrt(projected.shape[-1])
        elif self.score == "additive":
            scores = torch.tanh(self.hidden(projected)) @ self.vector
        elif self.score == "scalar":
            scores = self.scalars.expand(projected.shape[:3])
        else:
            scores = projected.new_zeros(projected.shape[:3])
        return scores.softmax(dim=-1)

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Shape (batch, tokens, r)."""
        projected = self.project(states)
        fused = (self.layer_weights(projected)[..., None] * projected).sum(dim=2)
        return self.gamma * fused if self.score == "scalar" else fused


class MlpBlock(nn.Module):
    """A feed-forward block of width r with a residual, applied to each token separately."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Shape (batch, tokens, r)."""
        return x + self.layers(x)


class FlatNetwork(nn.Module):
    """The whole side network; FLAT-P with the default settings (reconstruction).

    Args:
        num_states: Number of hidden states given, including the embeddings: L + 1.
        hidden_size: Width d of the model.
        config: A `FlatConfig`.
        pool: How the states of the tokens are pooled; None: as the config says.
    """

    def __init__(self, num_states: int, hidden_size: int, config: Any, pool: str | None = None) -> None:
        super().__init__()
        width = config.width or max(16, hidden_size // 16)
        self.fusion = LayerFusion(num_states, hidden_size, width, config.score, config.include_embeddings)
        blocks: list[nn.Module] = []
        if config.side == "transformer":
            heads = fitting_heads(width)
            blocks = [SideBlock(width, heads, config.dropout) for _ in range(config.num_blocks)]
        elif config.side == "mlp":
            blocks = [MlpBlock(width, config.dropout) for _ in range(config.num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.up = nn.Linear(width, hidden_size)
        self.pool = pool or config.pool

    def forward(self, states: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Pooled features, shape (batch, d); without pooling (batch, tokens, d).

        Args:
            states: The L + 1 hidden states, each of shape (batch, tokens, d).
            mask: 1 for tokens, 0 for padding, shape (batch, tokens).
        """
        x = self.fusion(states)
        for block in self.blocks:
            x = block(x, mask)
        return pool(torch.tanh(self.up(x)), mask, self.pool)


class FlatModel(SideTuner):
    """Fuses the representations of all layers next to the frozen encoder (doi 10.1016/j.neunet.2024.106631).

    A reconstruction, FLAT-P: only the paper's abstract could be read.

    Args:
        model: A sequence classifier or a tagger.
        config: A `FlatConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "flat_"

    def new_network(self, config: FlatConfig) -> nn.Module:
        """See `SideTuner.new_network`."""
        shape: Any = self.model.config
        return FlatNetwork(self.anatomy.num_layers(shape) + 1, shape.hidden_size, config, self.pool_of(config))
