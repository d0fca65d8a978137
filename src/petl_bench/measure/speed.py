"""Latency and throughput of a finished model, as medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

BATCH_SIZE = 32
# Repeats, not counting the first, which is discarded.
_FEWEST, _MOST = 3, 50


@dataclass(frozen=True)
class InferenceTimes:
    """Seconds of each forward pass: of one row, and of `BATCH_SIZE` rows."""

    one_row: list[float]
    batch: list[float]


def time_forward(
    model: nn.Module,
    *,
    sequence_length: int,
    seconds: float,
    autocast: Callable[[], AbstractContextManager[None]],
) -> InferenceTimes:
    """Times forward passes over rows of `sequence_length` random tokens without padding, one row and 32 at a time.

    Args:
        model: On its device; left in evaluation mode.
        sequence_length: Tokens of each row.
        seconds: Time that all repeats together may take; at least three of each are made.
        autocast: Context manager of the run's precision.

    Returns:
        Seconds of each forward pass.
    """
    model.eval()
    one_row = _times(model, 1, sequence_length, seconds / 2, autocast)
    return InferenceTimes(one_row, _times(model, BATCH_SIZE, sequence_length, seconds / 2, autocast))


def _times(
    model: nn.Module, rows: int, length: int, seconds: float, autocast: Callable[[], AbstractContextManager[None]]
) -> list[float]:
    """Returns the seconds of each repeat."""
    device = next(model.parameters()).device
    # A generator of its own leaves the run's random numbers as they are.
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = torch.randint(vocabulary, (rows, length), generator=generator).to(device)
    times: list[float] = []
    started = time.perf_counter()
    with torch.inference_mode(), autocast():
        while len(times) <= _FEWEST or (len(times) <= _MOST and time.perf_counter() - started < seconds):
            before = time.perf_counter()
            model(input_ids=ids)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
    return times[1:]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns lower quartile, median and upper quartile."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper
