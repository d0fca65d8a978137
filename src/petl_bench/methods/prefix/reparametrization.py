"""A network that computes the prefixes of all layers while they are trained."""

from __future__ import annotations

import torch
from torch import nn


class Reparametrization(nn.Module):
    """Embedding, linear, tanh, linear (Li & Liang 2021; P-tuning v2's `prefix_projection`).

    Args:
        length: Prefix vectors per layer.
        hidden_size: Width d of the model.
        mlp_hidden: Width h of the network.
        num_layers: Number of adapted layers.
        init_std: Standard deviation of the embedding at the start.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        length: int,
        hidden_size: int,
        mlp_hidden: int,
        num_layers: int,
        init_std: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, hidden_size, device=device))
        self.hidden = nn.Linear(hidden_size, mlp_hidden, device=device)
        self.output = nn.Linear(mlp_hidden, num_layers * 2 * hidden_size, device=device)
        self.hidden_size = hidden_size
        nn.init.normal_(self.embedding, std=init_std)

    def forward(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each of shape (length, d), of the adapted layer with this index."""
        hidden = torch.tanh(self.hidden(self.embedding))
        rows = slice(index * 2 * self.hidden_size, (index + 1) * 2 * self.hidden_size)
        both = nn.functional.linear(hidden, self.output.weight[rows], self.output.bias[rows])
        keys, values = both.chunk(2, dim=-1)
        return keys, values
