"""Peak memory by phase: the process's resident set always, the CUDA allocator's if there is a GPU."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")

_CLEAR_REFS = Path("/proc/self/clear_refs")

_RESET_PEAK = "5"

# A CUDA context holds some hundred MiB, which is no reason for a warning.
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
        """Measures what happens inside; what happens in a phase within it counts there alone.

        A phase that comes again keeps its highest peaks.
        """
        self._close_interval()
        self._open.append(name)
        try:
            yield
        finally:
            self._close_interval()
            self._open.pop()

    def book(self, name: str) -> None:
        """Counts what happened since the last call, or since the open phase began, as a phase of this name."""
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
