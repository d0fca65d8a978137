"""Soft top-k: weights in 0..1 that sum to k and follow the scores, differentiable.

They maximise `s.w + epsilon H(w)` subject to `sum(w) = k` and `0 <= w <= 1`, H the elementwise entropy (Qian et al.,
arXiv 2211.01267, equations 4-5 and appendix A.1; CoLT5's appendix C names it as the source of its router and CoDA's).
The solution is `w_i = min(1, exp((s_i + a) / epsilon))` for one scalar a.
"""

from __future__ import annotations

import torch

# Stands for minus infinity: exp() of it is 0, and no gradient through it is NaN.
_NEVER = -1e30


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
        scores: As in `exact_soft_top_k`, as are `k` and `mask`.
        k: See there.
        mask: See there.
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
