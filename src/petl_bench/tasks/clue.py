"""What tasks of CLUE and FewCLUE need beyond columns: texts that are made of further columns, and fixed splits.

A task names one of `TRANSFORMS` in `task.transform`. The texts are those that CLUE's own baselines read
(`classifier_pytorch/processors/clue.py` in CLUEbenchmark/CLUE).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.tasks.tables import Table

# The splits that FewCLUE gives: five draws of rows to train on and to select on, and all of them together.
FEWCLUE_SPLITS = ("0", "1", "2", "3", "4", "few_all")

# The numbers of the two spans of CLUEWSC, and what is written before and behind each of them in its text.
_MARKS = {1: ("_", "_"), 2: ("[", "]")}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transform:
    """Makes a text column of further columns.

    Attributes:
        columns: The columns that it reads.
        apply: Gives the table with that text column.
    """

    columns: tuple[str, ...]
    apply: Callable[[Table], Table]


def join_keywords(table: Table) -> Table:
    """Joins the list in `keyword` by spaces; keywords that are one string already stay as they are.

    Raises:
        RequestError: If a cell holds neither.
    """
    cells = table.column("keyword", "task.text_columns: 'keyword'")
    return _with_column(table, "keyword", [_joined(cell, table.place(row)) for row, cell in enumerate(cells)])


def _joined(cell: Any, place: str) -> str:
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, list) or not all(isinstance(word, str) for word in cell):
        raise RequestError(f"{place}: 'keyword' must hold a list of texts, or one text, but here is {cell!r}.")
    return " ".join(cell)


def mark_spans(table: Table) -> Table:
    """Marks the two spans of `target` in `text`, as `_span1_` and `[span2]`.

    The text of a span decides: where it is not at the index that is given, it is marked at its nearest occurrence, and
    the log says how many are.

    Raises:
        RequestError: If a span is not given, or is nowhere in its text.
    """
    texts = table.column("text", "task.text_columns: 'text'")
    targets = table.column("target", "task.transform=mark_spans: 'target'")
    marked, num_moved = [], 0
    for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
        place = table.place(row)
        if not isinstance(text, str):
            raise RequestError(f"{place}: column 'text' holds {text!r}, not a text.")
        spans = {number: _find_span(text, target, number, place) for number in _MARKS}
        num_moved += sum(begin != target[f"span{number}_index"] for number, (begin, _) in spans.items())
        marked.append(_with_marks(text, spans))
    if num_moved:
        _log.warning(
            "%s: %d spans are not at the index that is given, and are marked at their nearest occurrence",
            *(table.source, num_moved),
        )
    return _with_column(table, "text", marked)


def _find_span(text: str, target: Any, number: int, place: str) -> tuple[int, int]:
    """Begin and end of a span, at its occurrence nearest to the index that is given."""
    names = (f"span{number}_text", f"span{number}_index")
    span, index = (target.get(name) if isinstance(target, dict) else None for name in names)
    if not isinstance(span, str) or not span or type(index) is not int:
        raise RequestError(f"{place}: 'target' must hold a text in {names[0]} and a whole number in {names[1]}.")
    found = [begin for begin in range(len(text)) if text.startswith(span, begin)]
    if not found:
        raise RequestError(f"{place}: {names[0]} is {span!r}, which is nowhere in the text: correct or remove the row.")
    begin = min(found, key=lambda position: abs(position - index))
    return begin, begin + len(span)


def _with_marks(text: str, spans: dict[int, tuple[int, int]]) -> str:
    """The text with marks around its spans; of one span inside of another, the marks are inside, too."""
    marks = []
    for number, (begin, end) in spans.items():
        before, behind = _MARKS[number]
        # At one place, what ends comes before what begins; longer spans begin before shorter ones and end behind them.
        marks += [(begin, 1, begin - end, before), (end, 0, end - begin, behind)]
    for position, *_, mark in sorted(marks, reverse=True):
        text = text[:position] + mark + text[position:]
    return text


def _with_column(table: Table, name: str, values: list[str]) -> Table:
    return replace(table, columns=table.columns | {name: values})


TRANSFORMS = {
    "join_keywords": Transform(("keyword",), join_keywords),
    "mark_spans": Transform(("text", "target"), mark_spans),
}


def find_transform(name: str | None) -> Transform | None:
    """The transformation of this name; None for a task without one.

    Raises:
        RequestError: If there is none of this name.
    """
    if name is None:
        return None
    if name not in TRANSFORMS:
        raise unknown_choice("task.transform", name, TRANSFORMS)
    return TRANSFORMS[name]
