"""The records below folders without their files, which is what most tests ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petl_bench.records.schema import Record
from petl_bench.records.store import locate_records


def find_records(folders: Iterable[str | Path]) -> tuple[list[Record], list[str]]:
    """The records, and a message for each file that could not be read."""
    records, unreadable = locate_records(folders)
    return list(records.values()), unreadable
