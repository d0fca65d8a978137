"""Columns that texts and labels are taken from: derived from other columns, or found in a user's file.

A task names one of `TRANSFORMS` in `task.transform`. The texts are those that CLUE's own baselines read
(`classifier_pytorch/processors/clue.py` in CLUEbenchmark/CLUE). With `data=FILE`, columns are found if they are
unambiguous.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.process import name_fault
from petl_bench.settings import as_setting, as_value, option_names
from petl_bench.tasks.table_files import Table, read_table

# The splits that FewCLUE gives: five draws of rows to train on and to select on, and all of them together.
FEWCLUE_SPLITS = ("0", "1", "2", "3", "4", "few_all")

# The numbers of the two spans of CLUEWSC, and what is written before and behind each of them in its text.
_MARKS = {1: ("_", "_"), 2: ("[", "]")}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transform:
    """Makes a text column from other columns.

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
    occurrences = [begin for begin in range(len(text)) if text.startswith(span, begin)]
    if not occurrences:
        raise RequestError(f"{place}: {names[0]} is {span!r}, which is nowhere in the text: correct or remove the row.")
    begin = min(occurrences, key=lambda position: abs(position - index))
    return begin, begin + len(span)


def _with_marks(text: str, spans: dict[int, tuple[int, int]]) -> str:
    """The text with marks around its spans; if one span is inside the other, so are its marks."""
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


# Names of columns that hold labels, or texts in this order.
_LABEL_NAMES = {"label", "labels", "class", "category", "target", "intent", "queue", "topic", "sentiment"}
_TEXT_NAMES = (("text",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
               ("question", "sentence"), ("sentence",))  # fmt: skip
_WORDS_OF_TEXT = 2.5  # on average, at least


def data_settings(path: str, given: Mapping[str, str]) -> tuple[list[str], int]:
    """The settings of a task for a user's file with unambiguous columns; the chosen columns are logged.

    Args:
        path: The file, as `data=` names it.
        given: The settings of the command, by key.

    Returns:
        The settings, and the number of rows that the file has.

    Raises:
        RequestError: If the file cannot be read, or its columns are ambiguous.
    """
    settings = ["task=custom", as_setting("task.train_file", path)]
    if "task.name" not in given and (name := _task_name(path)):
        settings.insert(1, as_setting("task.name", name))
    missing = [key for key in ("task.text_columns", "task.label_column") if key not in given]
    names = [name for name in read_table(path, "data", ()).names if name != given.get("task.group_column")]
    table = replace(read_table(path, "data", names), names=names)
    if not table.num_rows:
        raise RequestError(f"{table.source} holds no rows.")
    if not missing:
        return settings, table.num_rows
    label = given.get("task.label_column") or _label_column(table)
    taken = []
    if "task.text_columns" in missing:
        texts = _text_columns(table, label)
        taken.append(f"text column{'s' * (len(texts) > 1)} {', '.join(map(repr, texts))}")
        settings.append("task.text_columns=[" + ",".join(map(as_value, texts)) + "]")
    if "task.label_column" in missing:
        taken.append(f"label column {label!r}")
        settings.append(as_setting("task.label_column", label))
    _log.info("data=%s: %s (%s would say otherwise)", path, ", ".join(taken), ", ".join(missing))
    return settings, table.num_rows


def _task_name(path: str) -> str:
    """A name for the task of a file, so that tables and folders tell several files apart; empty if none is suitable."""
    name = re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.")
    # With the name of another task, tables would mistake its rows for those of that task.
    return "" if name_fault(name) or name in option_names("task") else name


def _label_column(table: Table) -> str:
    named = [name for name in table.names if name.strip().casefold() in _LABEL_NAMES and _may_be_labels(table, name, 1)]
    candidates = named or [name for name in table.names if _may_be_labels(table, name, 3) and not _is_text(table, name)]
    if len(candidates) != 1:
        which = "none repeats its values as labels do"
        if candidates:
            which = f"{', '.join(map(repr, candidates))} all look like it"
        raise RequestError(
            f"data={table.source}: which column holds the labels is not clear ({which}): say task.label_column=NAME, "
            f"one of {', '.join(map(repr, table.names))}."
        )
    return candidates[0]


def _text_columns(table: Table, label: str) -> list[str]:
    others = [name for name in table.names if name != label]
    plain = {name.strip().casefold(): name for name in reversed(others)}
    for names in _TEXT_NAMES:
        if all(name in plain for name in names):
            return [plain[name] for name in names]
    candidates = [name for name in others if _is_text(table, name)] or (others if len(others) == 1 else [])
    if len(candidates) != 1:
        which = "none holds texts of several words"
        if candidates:
            which = f"{', '.join(map(repr, candidates))} all hold texts"
        raise RequestError(
            f"data={table.source}: which column holds the texts is not clear ({which}): say "
            f"'task.text_columns=[NAME]', of {', '.join(map(repr, others))}."
        )
    return candidates


def _known(table: Table, name: str) -> list[str]:
    return [str(value) for value in table.columns[name] if value is not None and value == value and str(value).strip()]


def _may_be_labels(table: Table, name: str, rows_per_label: int) -> bool:
    """Whether values occur more than `rows_per_label` times on average or all are equal, and none is a fraction."""
    values = _known(table, name)
    fractions = any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value.strip()) for value in values)
    return not fractions and (len(set(values)) == 1 or 0 < rows_per_label * len(set(values)) < len(values))


def _is_text(table: Table, name: str) -> bool:
    values = _known(table, name)
    return bool(values) and sum(len(value.split()) for value in values) / len(values) >= _WORDS_OF_TEXT
