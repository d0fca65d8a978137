"""Where petl_bench caches what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """PETL_BENCH_CACHE, else petl_bench in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("PETL_BENCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "petl_bench"
    return Path(root).expanduser()
