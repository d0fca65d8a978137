"""Which of several processes this is, before any of them has met the others."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this process prints and writes: the only one, or the first that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0
