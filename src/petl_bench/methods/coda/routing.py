"""Chooses the tokens of each example that pass a layer, their weights, and what the layer is called with.

Soft top-k weights maximise `s.w + epsilon H(w)` subject to `sum(w) = k` and `0 <= w <= 1`, H the elementwise entropy
(Qian et al., arXiv 2211.01267, equations 4-5 and appendix A.1; CoLT5's appendix C names it as the source of its router
and CoDA's). The solution is `w_i = min(1, exp((s_i + a) / epsilon))` for one scalar a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

# Represents minus infinity: exp() of it is 0, and no gradient through it is NaN.
_NEVER = -1e30

# Differences between scores that may come from rounding, as a share of the row's largest score. Float32 keeps 6e-8 of a
# state; what four layers made of it was at most 4e-7 of the score.
_ROUNDING = 1e-5


def exact_soft_top_k(scores: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The solution in closed form, with one sort.

    Where the j largest entries are capped at 1, `a / epsilon = ln(k - j) - logsumexp` of the rest; the right j is the
    smallest that leaves the next entry at most 1.

    Args:
        scores: Float32, shape (batch, tokens).
        k: Budget of each row, integers of shape (batch,), at most the row's candidates; 0 gives zeros.
        mask: True for the candidates, shape (batch, tokens); the others get 0.
        epsilon: Temperature; 0.03 is reported for CoDA on text.

    Returns:
        The weights, shape (batch, tokens).
    """
    z = (scores / epsilon).masked_fill(~mask, _NEVER)
    with torch.no_grad():
        cap = _first_uncapped(z, k)
        capped = z > cap
        rest = (k - capped.sum(dim=-1)).clamp(min=1).to(z.dtype)
    offset = rest.log() - torch.logsumexp(z.masked_fill(capped, _NEVER), dim=-1)
    weights = torch.exp((z + offset[:, None]).clamp(max=0.0))
    return weights * (mask & (k > 0)[:, None])


def _first_uncapped(z: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The largest scaled score that is not capped, shape (batch, 1)."""
    ordered = z.sort(dim=-1, descending=True).values
    tail = ordered.flip(-1).logcumsumexp(dim=-1).flip(-1)
    position = torch.arange(z.shape[-1], device=z.device)
    budget = k[:, None] - position
    fits = ordered + budget.clamp(min=1).to(z.dtype).log() - tail <= 0
    # The last of the k is never above 1; rounding may say otherwise.
    fits = (fits & (budget >= 1)) | (budget <= 1)
    return ordered.gather(-1, fits.to(torch.uint8).argmax(dim=-1, keepdim=True))


def iterative_soft_top_k(
    scores: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor,
    epsilon: float,
    iterations: int = 20,
    epsilon_start: float = 4.0,
    epsilon_decay: float = 0.7,
) -> torch.Tensor:
    """Dual coordinate ascent from zero, as CoDA is reported to use it: 20 steps, the temperature falling to epsilon.

    Unless the scores are close together it has not converged after them: the weights then sum to less than k.

    Args:
        scores: See `exact_soft_top_k`.
        k: See `exact_soft_top_k`.
        mask: See `exact_soft_top_k`.
        epsilon: Final temperature.
        iterations: Number of steps.
        epsilon_start: Temperature of the first step; `epsilon` for a constant one.
        epsilon_decay: Factor on the temperature from step to step.

    Returns:
        The weights, shape (batch, tokens).
    """
    scores = scores.masked_fill(~mask, _NEVER)
    log_k = k.clamp(min=1).to(scores.dtype).log()[:, None]
    b = torch.zeros_like(scores)
    a = torch.zeros_like(log_k)
    current = max(epsilon_start, epsilon)
    for _ in range(iterations):
        a = current * (log_k - torch.logsumexp((scores + b) / current, dim=-1, keepdim=True))
        b = (-scores - a).clamp(max=0.0)
        last, current = current, max(current * epsilon_decay, epsilon)
    weights = torch.exp((scores + a + b) / last)
    return weights * (mask & (k > 0)[:, None])


def gather_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices`, shape (batch, k), of x, shape (batch, tokens, d)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def real_tokens(mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Which tokens are not padding, shape (batch, tokens), read off a layer's pairwise mask.

    Every token may attend to itself, also under a sliding window; padding may not be attended to.
    """
    batch, tokens = x.shape[:2]
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=x.device)
    visible = _visible(mask)
    own = visible[:, 0, 0] if visible.shape[2] == 1 else visible[:, 0].diagonal(dim1=-2, dim2=-1)
    return own.expand(batch, tokens)


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """True where a query may see a key; a float mask is added to the scores, so 0 means true."""
    return mask == 0 if mask.is_floating_point() else mask.bool()


def mask_for(
    mask: torch.Tensor | None, indices: torch.Tensor, valid: torch.Tensor, to_all: bool
) -> torch.Tensor | None:
    """The mask among routed tokens, or from them to all tokens; of the layer's own kind.

    Args:
        mask: The layer's mask, shape (batch or 1, 1, tokens or 1, tokens), or None.
        indices: Positions of the routed tokens, shape (batch, k).
        valid: Which of them are in use, shape (batch, k).
        to_all: Whether they attend to all tokens.

    Returns:
        Shape (batch, 1 or heads, k, k or tokens); None without a mask.
    """
    # Without padding every slot is in use.
    if mask is None:
        return None
    chosen = mask.expand(len(indices), *mask.shape[1:])
    if mask.shape[2] > 1:
        chosen = chosen.gather(2, indices[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    if to_all:
        return chosen
    chosen = chosen.gather(3, indices[:, None, None, :].expand(-1, mask.shape[1], chosen.shape[2], -1))
    in_use = valid[:, None, None, :]
    # ONNX cannot fill boolean masks.
    return chosen & in_use if mask.dtype == torch.bool else chosen.masked_fill(~in_use, _hidden(mask.dtype))


def _hidden(dtype: torch.dtype) -> float:
    """The value in a mask of this type where a key must not be seen."""
    return torch.finfo(dtype).min if dtype.is_floating_point else 0


def gather_arguments(arguments: dict[str, Any], indices: torch.Tensor, num_heads: int) -> dict[str, Any]:
    """A layer's further arguments for its routed tokens: rotary angles, distances, the terms that they add."""
    gathered = dict(arguments)
    if (angles := arguments.get("position_embeddings")) is not None:
        gathered["position_embeddings"] = tuple(
            gather_tokens(part.expand(len(indices), -1, -1), indices) for part in angles
        )
    if (bias := arguments.get("position_bias")) is not None:
        rows = bias.gather(2, indices[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[3]))
        columns = indices[:, None, None, :].expand(-1, bias.shape[1], indices.shape[1], -1)
        gathered["position_bias"] = rows.gather(3, columns)
    if (distances := arguments.get("relative_pos")) is not None:
        square = distances.expand(len(indices), -1, -1)
        rows = square.gather(1, indices[:, :, None].expand(-1, -1, square.shape[2]))
        both = rows.gather(2, indices[:, None, :].expand(-1, indices.shape[1], -1))
        # The library drops a leading axis of 1 and expects one matrix for each example and head.
        gathered["relative_pos"] = both.repeat_interleave(num_heads, dim=0)[None]
    return gathered


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


def route(scores: torch.Tensor, real: torch.Tensor, config: Any, *, learned: bool | None = None) -> Routing:
    """Routes by scores.

    Args:
        scores: Float32, shape (batch, tokens); the largest win.
        real: True for tokens, False for padding, shape (batch, tokens).
        config: A `CodaConfig`.
        learned: Whether the scores are a learned router's, which also weigh the tokens. None: as the config says.

    Returns:
        The routed tokens and their weights.
    """
    lengths = real.sum(dim=-1)
    k = num_routed(lengths, config.reduction)
    order = scores.masked_fill(~real, -math.inf)
    if config.force_first:
        order = order.masked_fill(_first(real), math.inf)
    tokens = scores.shape[1]
    # The most slots that an example of the batch can need, which is known without waiting for the device.
    slots = min(tokens, math.ceil(tokens / config.reduction - 1e-6))
    best = _best(order, slots)
    beyond = torch.arange(slots, device=scores.device) >= k[:, None]
    indices = best.masked_fill(beyond, tokens).sort(dim=-1).values
    valid = indices < tokens
    indices = indices.clamp(max=tokens - 1)
    learned = config.router == "learned" if learned is None else learned
    weights = (_weights(scores, real, k, config) if learned else torch.ones_like(scores)).gather(-1, indices) * valid
    return Routing(indices, valid, weights)


def _best(scores: torch.Tensor, slots: int) -> torch.Tensor:
    """Positions of the largest scores, shape (batch, slots); equal ones in the order of their positions.

    Where positions are relative, equal tokens have equal states until attention tells them apart, and so equal scores.
    When computed, these differ by rounding, which depends on the batch: on its padding, and on the row's place in
    it. So scores that differ by no more than rounding explains count as equal. Scores of unlike tokens are hardly
    ever so close, and are then ordered by position too.

    Args:
        scores: Float32, shape (batch, tokens); infinite for a token that is always or never among them.
        slots: Number of positions.
    """
    tokens = scores.shape[1]
    ordered, positions = scores.sort(dim=-1, descending=True)
    largest = scores.masked_fill(scores.isinf(), 0.0).abs().amax(dim=-1, keepdim=True)
    # The difference of two infinities is NaN, and so not a step.
    steps = ordered[:, :-1] - ordered[:, 1:] > _ROUNDING * largest
    ranks = torch.zeros_like(positions).scatter(1, positions[:, 1:], steps.cumsum(dim=-1))
    places = ranks * tokens + torch.arange(tokens, device=scores.device)
    return places.topk(slots, dim=-1, largest=False).indices


def _weights(scores: torch.Tensor, real: torch.Tensor, k: torch.Tensor, config: Any) -> torch.Tensor:
    """Factors of a learned router on the update of every token, were it routed; shape (batch, tokens)."""
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
