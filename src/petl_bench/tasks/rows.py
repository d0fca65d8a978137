"""Rows of a task: the texts and labels of a table, checked cell by cell."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Self

import numpy as np

from petl_bench.errors import RequestError, listed
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.table_files import Table

UNLABELLED = -1

# Numbers that mark a row without a label if the classes are numbered from 0 or 1, or often if they are words.
_UNLABELLED_NUMBERS = (-1, -100)
# Words that often mark such a row, whatever the classes.
_UNLABELLED_WORDS = {"na", "n/a", "nan", "null", "none", "?", "-", "unlabeled", "unlabelled", "missing"}

_LARGEST_TARGET = float(np.finfo(np.float32).max)

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(e[+-]?[0-9]{1,3})?")
# A cell with several labels as a program prints its list: in brackets, or in any parentheses with quotation marks.
_PRINTED_LIST = re.compile(r"""\[[^\[\]]*\]|[\[({]\s*(['"]).*\1\s*,?\s*[\])}]""", re.DOTALL)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Rows in order.

    Attributes:
        texts: One list a text column, all of the same length.
        labels: Class indices (int64) or targets (float64), shape (rows,); of multi-label rows, 1 for each label that a
            row has and else 0 (float32), shape (rows, classes); None where there are none.
        num_left_out: The number of further rows in their table that have no label (`task.unlabelled`).
        groups: The group of each row in `task.group_column`, shape (rows,); None without such a column.
        table: The table that they were read from, without its columns; None where there is none.
        positions: Where each row is in that table, shape (rows,); None where there is none.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    num_left_out: int = field(default=0, kw_only=True)
    groups: np.ndarray | None = field(default=None, kw_only=True)
    table: Table | None = field(default=None, kw_only=True)
    positions: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.texts[0])

    def take(self, indices: np.ndarray) -> Self:
        """The rows at these positions, in this order."""
        return replace(
            self,
            texts=tuple([column[i] for i in indices] for column in self.texts),
            labels=None if self.labels is None else self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
            positions=None if self.positions is None else self.positions[indices],
        )

    def place(self, row: int) -> str:
        """Where a row was read, for messages; the first one has index 0."""
        if self.table is None or self.positions is None:
            return f"row {row + 1}"
        return self.table.place(int(self.positions[row]))

    def ids(self) -> np.ndarray:
        """Names rows by 16 hex digits of the sha256 of their texts, joined by zero bytes; shape (rows,)."""
        texts = ("\0".join(row).encode("utf-8", "surrogatepass") for row in zip(*self.texts, strict=True))
        return np.array([hashlib.sha256(text).hexdigest()[:16] for text in texts])

    def fingerprint(self) -> str:
        """Hex sha256 of texts and labels."""
        digest = hashlib.sha256()
        for column in self.texts:
            for text in column:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\x00")
            digest.update(b"\x01")
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def rows_from_table(table: Table, task: TaskConfig, labels: list[str] | None) -> Rows:
    """Picks the task's columns out of a table; where it lacks the label column, the rows have no labels.

    Args:
        table: Read with the task's columns.
        task: Names the text columns and the label column.
        labels: Names of the classes; None for regression.

    Returns:
        Texts by column, labels as numbers, and groups where the task has them.

    Raises:
        RequestError: If a text column is missing, a cell holds no text, or a label is none of `labels`.
    """
    whole, positions = table, _labelled(table, task)
    table = table.take(positions) if len(positions) < table.num_rows else table
    texts = tuple(_text_column(table, column) for column in task.text_columns)
    if not texts[0]:
        raise RequestError(f"{table.source} holds no rows.")
    if not any(text.strip() for column in texts for text in column):
        raise RequestError(f"{table.source}: no row has a text in {', '.join(map(repr, task.text_columns))}.")
    values = None
    if task.label_column in table.columns:
        # Class labels of data sets are numbered by their names; in a file, 1 may be the label "1".
        is_numbered = task.source in ("hub", "package")
        if task.type == "multilabel" and labels is not None:
            values = _label_sets(table, task, labels, numbered=is_numbered)
        else:
            values = _label_values(table, task.label_column, labels, numbered=is_numbered)
    return Rows(
        texts,
        values,
        num_left_out=whole.num_rows - len(positions),
        groups=group_names(table, task),
        table=replace(whole, columns={}),
        positions=np.array(positions),
    )


def group_names(table: Table, task: TaskConfig) -> np.ndarray | None:
    """The group of each row in `task.group_column`, shape (rows,); None where the table has no such column.

    Raises:
        RequestError: If a cell is empty.
    """
    column = task.group_column
    if column is None or column not in table.columns:
        return None
    values = table.columns[column]
    for row, value in enumerate(values):
        if is_missing(value) or not str(value).strip():
            raise RequestError(f"{table.place(row)}: task.group_column={column} is empty: name the group of each row.")
    # Written like labels, so that numbers from different files match.
    return np.array([label_name(value, table.place(row), column) for row, value in enumerate(values)], dtype=object)


def _labelled(table: Table, task: TaskConfig) -> list[int]:
    """The positions of the rows that have a label, one that is not in `task.unlabelled`."""
    column = task.label_column
    if not task.unlabelled or column not in table.columns:
        return list(range(table.num_rows))
    names = [label_name(value, table.place(row), column) for row, value in enumerate(table.columns[column])]
    positions = [row for row, name in enumerate(names) if name not in task.unlabelled]
    if names and not positions:
        raise RequestError(
            f"{table.source} hides its labels: all are among task.unlabelled={task.unlabelled}. Its rows can be "
            "predicted but not trained or scored on."
        )
    return positions


def require_labels(rows: Rows, task: TaskConfig, where: str) -> Rows:
    """Returns the rows.

    Raises:
        RequestError: If they have no label column, or it hides the labels.
    """
    if rows.labels is None:
        raise RequestError(
            f"task.label_column={task.label_column} is not a column of {where}: rows without labels can be predicted "
            "but not trained or scored on."
        )
    if task.type == "classification" and (rows.labels == UNLABELLED).any():
        raise RequestError(f"{where} hides its labels (-1): it can be predicted but not trained or scored on.")
    return rows


def check_text(text: str, place: str) -> str:
    """Returns a text.

    Raises:
        RequestError: If no tokenizer can read it: it contains a zero byte, or bytes that are not UTF-8.
    """
    if "\0" in text:
        raise RequestError(f"{place}: the text holds a zero byte: remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{place}: the text holds bytes that are no UTF-8: write it in UTF-8.") from error
    return text


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing, whatever the text of others: None, or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _written(value: Any, place: str, column: str) -> str:
    """A cell as text: numbers as they are written, bytes as UTF-8."""
    place = f"{place}: column {column!r}"
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{place} holds bytes that are no UTF-8: write them as text.") from error
    if isinstance(value, str):
        return check_text(value, place)
    if isinstance(value, bool | int | float):
        return str(value)
    raise RequestError(f"{place} holds a {type(value).__name__}, not one text or number: write one into each cell.")


def _text_column(table: Table, column: str) -> list[str]:
    values = table.column(column, f"task.text_columns: {column!r}")
    empty = [row for row, value in enumerate(values) if is_missing(value)]
    if empty:
        _log.warning("%s: %d empty texts in column %r", table.place(empty[0]), len(empty), column)
    return ["" if is_missing(value) else _written(value, table.place(row), column) for row, value in enumerate(values)]


def _label_values(table: Table, column: str, labels: list[str] | None, *, numbered: bool) -> np.ndarray:
    values = table.columns[column]
    if labels is None:
        return np.array([_target(value, table.place(row), column) for row, value in enumerate(values)], dtype="float64")
    if numbered and all(type(value) is int and UNLABELLED <= value < len(labels) for value in values):
        return np.array(values, dtype="int64")
    index = {label: i for i, label in enumerate(labels)}
    classes = []
    for row, value in enumerate(values):
        name = label_name(value, table.place(row), column)
        if name not in index:
            raise RequestError(f"{table.place(row)}: the label {name!r} is none of task.labels={listed(labels)}.")
        classes.append(index[name])
    return np.array(classes, dtype="int64")


def _label_sets(table: Table, task: TaskConfig, labels: list[str], *, numbered: bool) -> np.ndarray:
    """Which labels each row has, shape (rows, classes)."""
    cells = table.columns[task.label_column]
    if numbered and all(isinstance(cell, list) and all(type(label) is int for label in cell) for cell in cells):
        names = {index: index for index in range(len(labels))}
        labels_of_rows: list[list[Any]] = cells
    else:
        names = {label: index for index, label in enumerate(labels)}  # type: ignore[misc]
        labels_of_rows = [_labels_of_cell(cell, table.place(row), task) for row, cell in enumerate(cells)]
    values = np.zeros((len(cells), len(labels)), dtype=np.float32)
    for row, of_row in enumerate(labels_of_rows):
        for name in of_row:
            if name not in names:
                raise RequestError(f"{table.place(row)}: the label {name!r} is none of task.labels={listed(labels)}.")
            values[row, names[name]] = 1
    return values


def _labels_of_cell(cell: Any, place: str, task: TaskConfig) -> list[str]:
    """The labels of a multi-label row: of a list, or of a string with separators; an empty cell has none."""
    if is_missing(cell) or cell in ("", b""):
        return []
    if isinstance(cell, str | bytes):
        cell = _split_labels(_written(cell, place, task.label_column), place, task)
    values = cell if isinstance(cell, list) else [cell]
    names = [label_name(value, place, task.label_column) for value in values]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{place}: the label {twice!r} is given twice.")
    return names


def _split_labels(cell: str, place: str, task: TaskConfig) -> list[str]:
    column, parts = task.label_column, [part.strip() for part in cell.split(task.label_separator)]
    if _PRINTED_LIST.fullmatch(cell.strip()) and not set(parts) <= set(task.labels or ()):
        raise RequestError(
            f"{place}: {cell!r} in {column!r} is a list as a program prints it: give lists in a .jsonl or .parquet "
            f"file, or separate labels by {task.label_separator!r} alone; task.labels may name such a label."
        )
    if len(parts) > 1 and "" in parts:
        raise RequestError(f"{place} has no label in {column!r} beside a separator in {cell!r}: remove that separator.")
    return parts


def _target(value: Any, place: str, column: str) -> float:
    if is_missing(value) or value == "":
        raise RequestError(f"{place} has no label in {column!r}.")
    written = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    number = math.nan
    if isinstance(written, int | float | Decimal | str) and not isinstance(written, bool) and "_" not in str(written):
        with suppress(ValueError, OverflowError):
            number = float(written)
    # Training is in single precision.
    if not abs(number) <= _LARGEST_TARGET:
        raise RequestError(f"{place}: {written!r} is not numeric, or not finite: column {column!r} must hold numbers.")
    return number


def label_name(value: Any, place: str, column: str) -> str:
    """How a label is written: whole numbers without the `.0` that a table with gaps gives them.

    Args:
        value: The label's cell.
        place: Where it is, for messages.
        column: Its column, for messages.

    Raises:
        RequestError: If the cell is empty, or holds anything but one label.
    """
    if is_missing(value):
        raise RequestError(f"{place} has no label in {column!r}.")
    if isinstance(value, float) and math.isinf(value):
        raise RequestError(f"{place}: the label in {column!r} is {value}, which is no class.")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = _written(value, place, column)
    if not name.strip():
        raise RequestError(f"{place} has no label in {column!r}.")
    return name


def class_names(table: Table, task: TaskConfig) -> list[str]:
    """The distinct labels of a column: whole numbers by value, then all others in alphabetical order.

    Raises:
        RequestError: If there are fewer than two, or one marks rows without a label.
    """
    column = task.label_column
    cells = [(table.place(row), value) for row, value in enumerate(table.columns[column])]
    if not cells:
        raise RequestError(f"{table.source} holds no rows.")
    if task.type == "multilabel":
        counts = Counter(name for place, cell in cells for name in _labels_of_cell(cell, place, task))
        _log_other_separators(counts, table.source, task.label_separator)
    else:
        counts = Counter(label_name(value, place, column) for place, value in cells)
    if len(counts) < 2:
        raise RequestError(f"{table.source}: the column {column!r} holds fewer than two labels.")
    _check_marks(counts, table.source)
    _log_lookalikes(counts, table.source)
    return sorted(counts, key=_label_order)


def _label_order(name: str) -> tuple[int, int, str]:
    # The name itself comes last, so that "1" and "01" have one order in every process.
    return (0, int(name), name) if _WHOLE_NUMBER.fullmatch(name) else (1, 0, name)


def _check_marks(counts: Counter[str], source: str) -> None:
    """Refuses -1 or -100 among numbered classes, and logs a word that may mean that there is no label."""
    numbers: dict[float, str] = {}
    with suppress(ValueError):
        numbers = {float(name): name for name in counts}
    others = [number for number in numbers if number not in _UNLABELLED_NUMBERS]
    marks = [name for number, name in numbers.items() if number in _UNLABELLED_NUMBERS]
    if marks and len(others) > 1 and min(others) >= 0:
        names = ",".join(f"'{name}'" for name in sorted(counts, key=_label_order))
        raise RequestError(
            f"{source}: {counts[marks[0]]} rows have the label {marks[0]}, which often marks rows without one: remove "
            f"them, or say that it is a class with task.labels=[{names}]."
        )
    words = _UNLABELLED_WORDS if numbers else {*_UNLABELLED_WORDS, *_UNLABELLED_NUMBERS}
    for name, count in counts.items():
        if _folded(name) in words:
            _log.warning(
                "%s: %d rows have the label %r, which is taken as a class; remove them if it marks rows without one",
                *(source, count, name),
            )


def _folded(name: str) -> str | Decimal:
    """A label without what does not show: spaces around it, capital letters, invisible characters, forms of numbers."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    plain = unicodedata.normalize("NFKC", visible).strip().casefold()
    return Decimal(plain) if _NUMBER.fullmatch(plain) else plain


def _log_lookalikes(counts: Counter[str], source: str) -> None:
    """Logs labels that are equal once they are folded."""
    groups: dict[str | Decimal, list[str]] = {}
    for name in counts:
        groups.setdefault(_folded(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            shown = ", ".join(map(repr, sorted(names)))
            _log.warning("%s: the labels %s are taken as different classes", source, shown)


def _log_other_separators(counts: Counter[str], source: str, separator: str) -> None:
    """Logs labels that consist of others with a separator in between."""
    for other in sorted(set(",;|") - {separator}):
        parts = Counter(part.strip() for name in counts for part in name.split(other))
        united = [name for name in counts if other in name and all(parts[one.strip()] > 1 for one in name.split(other))]
        if united:
            _log.warning(
                "%s: %d labels, such as %r, consist of others: give task.label_separator='%s' if that separates labels",
                *(source, len(united), united[0], other),
            )
