"""Chooses the tokens of each example that pass a layer, and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from petl_bench.methods.coda.soft_top_k import exact_soft_top_k, iterative_soft_top_k


@dataclass(frozen=True)
class Routing:
    """The routed tokens of a batch, in the order of their positions.

    Attributes:
        indices: Positions, shape (batch, k); slots beyond an example's own k point at its last token.
        valid: Which slots are in use, shape (batch, k).
        weights: Float32 factors on the layer's update, shape (batch, k); 0 for unused slots.
    """

    indices: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor


def num_routed(num_tokens: torch.Tensor, reduction: float) -> torch.Tensor:
    """K = ceil(n / r) of each example, shape (batch,)."""
    # The margin keeps 9 / 3 from becoming 3.0000001.
    return torch.ceil(num_tokens / reduction - 1e-6).long().clamp(min=1)


def route(scores: torch.Tensor, real: torch.Tensor, config: Any) -> Routing:
    """Routes by scores.

    Args:
        scores: Float32, shape (batch, tokens); the largest win.
        real: True for tokens, False for padding, shape (batch, tokens).
        config: A `CodaConfig`.
    """
    lengths = real.sum(dim=-1)
    k = num_routed(lengths, config.reduction)
    order = scores.masked_fill(~real, -math.inf)
    if config.force_first:
        order = order.masked_fill(_first(real), math.inf)
    tokens = scores.shape[1]
    # As many slots as the longest example of the batch can need: known without waiting for the device.
    slots = min(tokens, math.ceil(tokens / config.reduction - 1e-6))
    found = order.topk(slots, dim=-1).indices
    beyond = torch.arange(slots, device=scores.device) >= k[:, None]
    indices = found.masked_fill(beyond, tokens).sort(dim=-1).values
    valid = indices < tokens
    indices = indices.clamp(max=tokens - 1)
    weights = _weights(scores, real, k, config).gather(-1, indices) * valid
    return Routing(indices, valid, weights)


def _weights(scores: torch.Tensor, real: torch.Tensor, k: torch.Tensor, config: Any) -> torch.Tensor:
    """Factors on the update of every token, were it routed; shape (batch, tokens)."""
    if config.router != "learned":
        return torch.ones_like(scores)
    candidates, budget = real, k
    if config.force_first:
        candidates = real & ~_first(real)
        budget = k - 1
    if config.solver == "exact":
        soft = exact_soft_top_k(scores, budget, candidates, config.epsilon)
    else:
        schedule = (config.iterations, config.epsilon_start, config.epsilon_decay)
        soft = iterative_soft_top_k(scores, budget, candidates, config.epsilon, *schedule)
    if config.straight_through:
        soft = soft + (1.0 - soft).detach()
    if config.force_first:
        soft = soft.masked_fill(_first(real), 1.0)
    return soft


def _first(real: torch.Tensor) -> torch.Tensor:
    """True at each example's first token, which padding on the left moves; shape (batch, tokens)."""
    return torch.arange(real.shape[1], device=real.device) == real.int().argmax(dim=-1, keepdim=True)
