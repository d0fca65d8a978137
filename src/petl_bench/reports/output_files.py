"""Which files a report can write: pictures and pages."""

from __future__ import annotations

from pathlib import Path

from petl_bench.errors import RequestError, RunError

FORMATS = (".png", ".pdf", ".svg")

PLOT_KINDS = ("pareto", "curves", "low_resource", "variability")

PAGES = (".html", ".htm")


def check_picture(file: Path) -> None:
    """Makes the picture's folder.

    Raises:
        RequestError: for a format that is not drawn.
        RunError: where nothing can be written there.
    """
    _check_file("--plot", file, FORMATS)


def check_page(file: Path) -> None:
    """Makes the page's folder.

    Raises:
        RequestError: for an ending that browsers do not open.
        RunError: where nothing can be written there.
    """
    _check_file("--html", file, PAGES)


def _check_file(option: str, file: Path, endings: tuple[str, ...]) -> None:
    if file.suffix not in endings:
        raise RequestError(f"{option} {file}: the ending must be one of {', '.join(endings)}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        file.open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise RunError(f"{option} {file} cannot be written ({error.strerror}): name another place.") from error
