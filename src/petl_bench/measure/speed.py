"""Latency and throughput of a finished model, as medians with their spread, and the time that compiling takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

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


class CompileClock:
    """A context that times torch's compiler, which also runs when a later batch has a shape that is new to it.

    Args:
        enabled: Whether anything is compiled; the clock stands still otherwise, and imports no compiler.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._seconds = self._started = 0.0

    def __enter__(self) -> Self:
        if self._enabled:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self._start)
            callback_handler.register_end_callback(self._end)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._enabled:
            from torch._dynamo.callback import callback_handler

            callback_handler.remove_start_callback(self._start)
            callback_handler.remove_end_callback(self._end)

    def lap(self) -> float:
        """Returns the seconds of compiling since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _start(self, _event: object) -> None:
        self._started = time.perf_counter()

    def _end(self, _event: object) -> None:
        self._seconds += time.perf_counter() - self._started


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns lower quartile, median and upper quartile."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper
