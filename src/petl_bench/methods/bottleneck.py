"""A bottleneck: down-projection, activation, up-projection."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.activations import ACT2FN


class Bottleneck(nn.Module):
    """Computes `scale * (W2 g(W1 x + b1) + b2)`; whoever holds it adds the input where the method says so.

    Args:
        hidden_size: Width d of input and output.
        size: Width m of the bottleneck.
        activation: Name of g in transformers' table.
        init: "truncated_normal" cuts at two standard deviations; "normal" does not; "lora" starts the down-projection
            as Kaiming-uniform and the up-projection at zero. Biases start at zero.
        init_std: Standard deviation before it is cut.
        scale: Factor on the output.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        hidden_size: int,
        size: int,
        *,
        activation: str,
        init: str,
        init_std: float = 0.02,
        scale: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, size, device=device)
        self.up = nn.Linear(size, hidden_size, device=device)
        self.activation = ACT2FN[activation]
        self.scale = scale
        self._reset(init, init_std)

    def _reset(self, init: str, std: float) -> None:
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            for linear in (self.down, self.up):
                initialise(linear.weight, init, std)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (..., d) in and out, in the input's dtype."""
        hidden = self.activation(self.down(x.to(self.down.weight.dtype)))
        update: torch.Tensor = self.up(hidden)
        return (update if self.scale == 1.0 else self.scale * update).to(x.dtype)


def initialise(weight: torch.Tensor, init: str, std: float) -> None:
    """Draws a weight from a normal distribution, cut at two standard deviations or not."""
    if init == "truncated_normal":
        # The defaults of torch, a=-2 and b=2, are absolute and would cut nothing.
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)
