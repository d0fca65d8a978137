"""Reads JSON files, and writes them whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# More than those of any float.
_MOST_DIGITS = 300


def read_json(file: Path) -> Any:
    """Reads a file.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is no JSON, or more than can be computed with.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def write_json(file: Path, content: Any, indent: int = 2) -> None:
    """Writes a file by an atomic rename, once its content is on the disk; folders are made, numbers must be finite."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=indent, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
