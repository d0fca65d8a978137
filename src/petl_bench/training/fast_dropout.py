"""Draws dropout's masks faster on the CPU, where torch's own generator of them takes a good part of an update."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BITS = 16


@contextmanager
def fast_dropout(device: torch.device) -> Iterator[None]:
    """Within it torch's CPU kernel for Bernoulli draws, which all kinds of dropout use, takes 16 random bits a draw.

    Four draws share one 64-bit number of torch's generator: same seed, same masks, whatever the number of threads.
    Probabilities are rounded to multiples of 2^-16.

    Args:
        device: Where the model is trained; nothing changes unless it is the CPU.
    """
    if device.type != "cpu":
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That a kernel is replaced.
        warnings.simplefilter("ignore")
        library.impl("bernoulli_.float", _bernoulli, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _bernoulli(target: torch.Tensor, p: float = 0.5, generator: torch.Generator | None = None) -> torch.Tensor:
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    threshold = round(p * 2**_BITS)
    if threshold == 2**_BITS:
        # No 16-bit number: and nothing is left to chance.
        return target.fill_(1)
    count = target.numel()
    numbers = torch.empty(-(-count * _BITS // 64), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    draws = numbers.view(torch.int16)[:count].view(target.shape)
    return target.copy_(draws < threshold - 2 ** (_BITS - 1))
