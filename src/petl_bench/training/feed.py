"""How rows reach a model: as tokens, or as the states that its frozen trunk gives for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from petl_bench.training.batching import Batch, TokenRows, collate
from petl_bench.training.trunk import Trunk, first_tokens
from petl_bench.training.trunk_states import FlatStates, compute_states


class Feed:
    """Feeds a model the tokens of rows.

    Args:
        rows: The rows.
        device: Where the model is.
    """

    def __init__(self, rows: TokenRows, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def batch(self, indices: np.ndarray) -> Batch:
        """These rows, where the model is."""
        return collate(self.rows, indices).to(self.device)

    def forward(self, model: nn.Module, batch: Batch, labels: torch.Tensor | None = None) -> Any:
        """The model's outputs for a batch; with labels, its loss too."""
        return model(**batch.inputs) if labels is None else model(**batch.inputs, labels=labels)


class TrunkFeed(Feed):
    """Feeds a model the states of its trunk: it computes what is above them.

    Args:
        rows: The rows.
        device: Where the model is.
        trunk: Of the model.
        cached: The states of all rows; None: each batch's are computed when it comes.
    """

    def __init__(self, rows: TokenRows, device: torch.device, trunk: Trunk, cached: FlatStates | None) -> None:
        super().__init__(rows, device)
        self.trunk, self.cached = trunk, cached

    def batch(self, indices: np.ndarray) -> Batch:
        """See `Feed.batch`."""
        batch = collate(self.rows, indices)
        if self.trunk.cut.first_token:
            batch.inputs, batch.num_padded_tokens = first_tokens(batch.inputs), batch.num_tokens
        if self.cached is not None:
            batch.states = self.cached.padded(indices)
        else:
            computed = compute_states(self.trunk, self.rows, indices, self.device)
            batch.states = computed.padded(np.arange(len(indices)))
        return batch.to(self.device)

    def forward(self, model: nn.Module, batch: Batch, labels: torch.Tensor | None = None) -> Any:
        """See `Feed.forward`."""
        assert batch.states is not None
        with self.trunk.given(batch.states):
            return super().forward(model, batch, labels)
