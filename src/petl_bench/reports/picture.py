"""Which pictures can be drawn."""

from __future__ import annotations

from pathlib import Path

from petl_bench.errors import RequestError, RunError

FORMATS = (".png", ".pdf", ".svg")


def check_picture(file: Path) -> None:
    """Makes the picture's folder.

    Raises:
        RequestError: for a format that is not drawn.
        RunError: where nothing can be written there.
    """
    if file.suffix not in FORMATS:
        raise RequestError(f"--plot {file}: the ending must be one of {', '.join(FORMATS)}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        file.open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise RunError(f"--plot {file} cannot be written ({error.strerror}): name another place.") from error
