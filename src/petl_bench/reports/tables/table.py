"""A table of text, whatever it is about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportTable:
    """Rows of text cells under a header, with notes that say what the columns mean.

    Attributes:
        bold: (row, column) of the cells to print in bold.
        prose: Names of columns that hold sentences: aligned to the left, and wrapped where a line has an end.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    bold: frozenset[tuple[int, int]] = frozenset()
    prose: tuple[str, ...] = ()
