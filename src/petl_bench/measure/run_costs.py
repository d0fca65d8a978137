"""What a run costs: its peak memory by phase, the speed of the finished model, and the time that compiling takes."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


_STATUS = Path("/proc/self/status")

_CLEAR_REFS = Path("/proc/self/clear_refs")

_RESET_PEAK = "5"

# A CUDA context takes a few hundred MiB, which needs no warning.
_NOTEWORTHY = 2**30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhasePeak:
    """Peaks of one phase, in bytes; `None` where the machine has no CUDA device."""

    process_rss_bytes: int
    device_allocated_bytes: int | None = None
    device_reserved_bytes: int | None = None


class PeakMemory:
    """Records the peaks of named phases of one run.

    The resident set is the operating system's count of the whole process, interpreter and libraries included. On Linux
    its peak is reset before each phase; elsewhere it only grows. What an earlier run left behind in the same process is
    in it too, so that only the first run of a process has a peak of the process.

    Args:
        on_cuda: Whether the run computes on a CUDA device.
    """

    _runs_of_this_process = 0

    def __init__(self, *, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._is_first_run = PeakMemory._runs_of_this_process == 0
        PeakMemory._runs_of_this_process += 1
        self.phases: dict[str, PhasePeak] = {}
        self._open: list[str] = []
        self._alloc_retries_before = self._alloc_retries()
        _release_freed_memory()
        self.device_held_before_bytes = self._held_by_others() if on_cuda else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the peaks inside the context; those of a nested phase count only for the nested phase.

        A phase that is entered again keeps its highest peaks.
        """
        self._close_interval()
        self._open.append(name)
        try:
            yield
        finally:
            self._close_interval()
            self._open.pop()

    def book(self, name: str) -> None:
        """Counts the peaks since the last call, or since the open phase began, as those of a phase of this name."""
        self.phases[name] = _highest(self.phases.get(name), self._current_peak())
        self._reset_peaks()

    def _close_interval(self) -> None:
        """Counts the peaks since the last call as part of the innermost open phase."""
        if self._open:
            self.book(self._open[-1])
        else:
            self._reset_peaks()

    def log(self) -> None:
        """Writes the peaks of all phases to the log."""
        for name, peak in self.phases.items():
            _log.info("peak memory, %s: %s", name, _describe(peak))

    @property
    def process_peak_rss_bytes(self) -> int | None:
        """Highest resident set over all phases; None if the process made another run before this one."""
        if not self._is_first_run:
            return None
        return max((peak.process_rss_bytes for peak in self.phases.values()), default=_peak_rss_bytes())

    @property
    def alloc_retries(self) -> int:
        """How often the CUDA allocator ran short and had to free its cache since the run began."""
        return self._alloc_retries() - self._alloc_retries_before

    def _held_by_others(self) -> int:
        free, total = torch.cuda.mem_get_info()
        held = int(total - free - torch.cuda.memory_reserved())
        if held > _NOTEWORTHY:
            _log.warning(
                "%.1f GiB of the device were held before the run, by other processes for the most part: they slow it "
                "down, and it may run out of memory sooner",
                held / 2**30,
            )
        return held

    def _alloc_retries(self) -> int:
        return int(torch.cuda.memory_stats().get("num_alloc_retries", 0)) if self._on_cuda else 0

    def _current_peak(self) -> PhasePeak:
        if not self._on_cuda:
            return PhasePeak(_peak_rss_bytes())
        torch.cuda.synchronize()
        return PhasePeak(_peak_rss_bytes(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())

    def _reset_peaks(self) -> None:
        with suppress(OSError):  # not Linux, or not allowed: the peak only grows
            _CLEAR_REFS.write_text(_RESET_PEAK)
        if self._on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()


def _highest(first: PhasePeak | None, second: PhasePeak) -> PhasePeak:
    if first is None:
        return second
    if second.device_allocated_bytes is None:
        return PhasePeak(max(first.process_rss_bytes, second.process_rss_bytes))
    return PhasePeak(
        max(first.process_rss_bytes, second.process_rss_bytes),
        max(first.device_allocated_bytes or 0, second.device_allocated_bytes),
        max(first.device_reserved_bytes or 0, second.device_reserved_bytes or 0),
    )


def _describe(peak: PhasePeak) -> str:
    text = f"process {peak.process_rss_bytes / 2**20:,.0f} MiB"
    if peak.device_allocated_bytes is not None and peak.device_reserved_bytes is not None:
        text += (
            f", device {peak.device_allocated_bytes / 2**20:,.0f} MiB allocated, "
            f"{peak.device_reserved_bytes / 2**20:,.0f} MiB reserved"
        )
    return text


def _peak_rss_bytes() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _release_freed_memory() -> None:
    """Returns memory that an earlier run freed to the system, so that it is not counted for this run."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


BATCH_SIZE = 32
# Limits on the number of repeats, not counting the first, which is discarded.
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
    # A separate generator leaves the run's random numbers unchanged.
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
        enabled: Whether anything is compiled; otherwise, the clock does not run and no compiler is imported.
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
