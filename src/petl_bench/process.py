"""This process: its rank, its cache folder, whether a GPU may be there, where its log goes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def is_main_process() -> bool:
    """Whether this process prints and writes: the only one, or the first that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def gpu_may_be_there() -> bool:
    """False where the system has no GPU driver, which is found out without importing torch."""
    if sys.platform != "linux":
        return True
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


def cache_dir() -> Path:
    """PETL_BENCH_CACHE, else petl_bench in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("PETL_BENCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "petl_bench"
    return Path(root).expanduser()


DEBUG_VARIABLE = "PETL_BENCH_DEBUG"


def setup_logging() -> None:
    """Sends our log to stderr and keeps the libraries' chatter out."""
    logger = logging.getLogger("petl_bench")
    if not logger.handlers:
        handler = _AboveProgressBars()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    # A log that cannot be written (full disk) must not bury the message under a traceback.
    logging.raiseExceptions = debugging()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not debugging():
        import warnings

        warnings.filterwarnings("ignore", module=r"(peft|transformers|accelerate|torch|datasets|evaluate)(\.|$)")


class _AboveProgressBars(logging.Handler):
    """Writes to stderr above whatever progress bar is there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def debugging() -> bool:
    """Whether tracebacks and the libraries' warnings are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
