"""Where messages go: ours to stderr, the libraries' chatter nowhere."""

from __future__ import annotations

import logging
import os
import sys

from petl_bench.processes import is_main_process

DEBUG_VARIABLE = "PETL_BENCH_DEBUG"


def setup_logging() -> None:
    """Sends our log to stderr and keeps the libraries' chatter out."""
    logger = logging.getLogger("petl_bench")
    if not logger.handlers:
        handler = _BesideProgressBars()
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


class _BesideProgressBars(logging.Handler):
    """Writes to stderr above whatever progress bar is there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def debugging() -> bool:
    """Whether tracebacks and the libraries' warnings are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
