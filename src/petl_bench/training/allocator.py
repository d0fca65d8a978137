"""Lets the process keep the memory that one update frees for the next."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it glibc keeps freed memory instead of giving it back to the system; afterwards it is given back.

    By default each large tensor on the CPU is mapped anew, and the system clears its pages first.
    Elsewhere than on glibc nothing changes.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)  # type: ignore[union-attr]
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # type: ignore[union-attr]
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)  # type: ignore[union-attr]
        library.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)  # type: ignore[union-attr]
        library.malloc_trim(0)  # type: ignore[union-attr]
