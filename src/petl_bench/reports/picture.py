"""Which pictures can be drawn."""

from __future__ import annotations

from pathlib import Path

from petl_bench.errors import RequestError

FORMATS = (".png", ".pdf", ".svg")


def check_picture(file: Path) -> None:
    """Raises RequestError for a picture's format that is not drawn."""
    if file.suffix not in FORMATS:
        raise RequestError(f"--plot {file}: the ending must be one of {', '.join(FORMATS)}.")
