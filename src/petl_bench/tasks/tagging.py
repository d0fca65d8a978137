"""Rows of words with tags, and the formats that they are read from.

A sentence comes as CoNLL columns, as lists of words and tags, or as a text with the spans of its entities.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from petl_bench.errors import RequestError, listed
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.metrics import OUTSIDE, SCHEMES, Span, entity_tags, scheme_of
from petl_bench.tasks.rows import Rows, check_text, group_names
from petl_bench.tasks.table_files import Table

# Marks the start of a document in the files of CoNLL-2003; it is not a word, and no sentence goes on across it.
_DOCUMENT = "-DOCSTART-"
# What the columns of words and of tags are called in the headers of files.
_WORD_HEADERS = {"token", "tokens", "word", "words", "text", "form"}
_TAG_HEADERS = {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "ner-tag", "entity", "bio"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaggedRows(Rows):
    """Sentences in order.

    Attributes:
        texts: One column. Where words were given, a space separates them.
        labels: One array of tag indices a sentence, of dtype object, shape (rows,); None where there are no tags.
        spans: Where the words of each sentence are in its text: begin and end, in characters.
    """

    spans: tuple[list[Span], ...] = ()

    @property
    def words(self) -> list[list[str]]:
        """The words of each sentence."""
        pairs = zip(self.texts[0], self.spans, strict=True)
        return [[text[begin:end] for begin, end in spans] for text, spans in pairs]

    @property
    def word_offsets(self) -> np.ndarray:
        """Words of sentence i are `word_offsets[i]:word_offsets[i + 1]` of all words; shape (rows + 1,)."""
        return np.concatenate([[0], np.cumsum([len(spans) for spans in self.spans])]).astype(np.int64)

    def take(self, indices: np.ndarray) -> Self:
        """The sentences at these positions, in this order."""
        return replace(super().take(indices), spans=tuple(self.spans[i] for i in indices))

    def fingerprint(self) -> str:
        """Hex sha256 of texts, words and tags."""
        digest = hashlib.sha256(Rows(self.texts, None).fingerprint().encode())
        for row, spans in enumerate(self.spans):
            tags = None if self.labels is None else self.labels[row].tolist()
            digest.update(repr((spans, tags)).encode())
        return digest.hexdigest()


def split_text(text: str, units: str) -> list[Span]:
    """Cuts a text into words: runs of letters and digits, and every other character that is no space.

    Args:
        text: The text.
        units: `words`; Chinese characters are words of their own, as in BERT's tokenizers. Or `characters`: every
            character that is no space is a word.

    Returns:
        Begin and end of each word.
    """
    spans: list[Span] = []
    in_word = False
    for position, character in enumerate(text):
        if character.isspace():
            in_word = False
            continue
        joins = units == "words" and _joins(character)
        if joins and in_word:
            spans[-1] = (spans[-1][0], position + 1)
        else:
            spans.append((position, position + 1))
        in_word = joins
    return spans


def _joins(character: str) -> bool:
    """Whether a character may be one of several in a word; marks such as vowel signs belong to the letter before."""
    if unicodedata.category(character)[0] not in "LNM":
        return False
    return not unicodedata.name(character, "").startswith("CJK ")


def without_tags(texts: tuple[list[str], ...], units: str) -> TaggedRows:
    """Rows of texts whose words are not given."""
    return TaggedRows(texts, None, tuple(split_text(text, units) for text in texts[0]))


def tag_names(table: Table, task: TaskConfig) -> list[str]:
    """The tags of a training file: O, then by type and letter. Each type gets all letters of the scheme.

    Raises:
        RequestError: If they are of no scheme that is known.
    """
    table.column(task.label_column, f"task.label_column={task.label_column}")
    names = {tag for _, _, tags, _ in _sentences(table, task) for tag in tags or ()}
    if any(isinstance(tag, int) for tag in names):
        raise RequestError(f"{table.source}: the tags are numbers: name them, from 0 on, with task.labels=[O,...].")
    inside = sorted(names - {OUTSIDE})
    is_bare = entity_tags(inside) != inside
    scheme = scheme_of(names if is_bare else {*names, OUTSIDE}, table.source)
    if is_bare:
        return [OUTSIDE, *inside]
    types = sorted({tag.partition("-")[2] for tag in inside})
    return [OUTSIDE, *(f"{letter}-{kind}" if kind else letter for kind in types for letter in SCHEMES[scheme])]


# Files


@dataclass(frozen=True)
class ColumnTable(Table):
    """The table of a file with one word a line; `lines` holds the line of each sentence's first word."""


def _word_place(table: Table, row: int, word: int) -> str:
    if isinstance(table, ColumnTable) and table.lines is not None:
        return f"{table.source}, line {table.lines[row] + word}"
    return f"{table.place(row)}, word {word + 1}"


def read_columns(text: str, source: str, words: str, tags: str) -> Table:
    """Reads a file of CoNLL columns.

    The first column holds the words and the last one the tags; empty lines separate sentences.

    Args:
        text: The content of the file.
        source: What it is called in messages.
        words: The name that the column of words gets.
        tags: The name that the column of tags gets; a file with one column has none.

    Returns:
        The table, one row per sentence, with the lists of its words and of its tags.

    Raises:
        RequestError: If a line has another number of columns than the first one.
    """
    if source.lower().removesuffix(".gz").endswith(".csv"):
        raise RequestError(f"{source}: a tagging task reads no .csv files: give CoNLL columns, .jsonl or .parquet.")
    sentences: list[list[list[str]]] = []
    lines: list[int] = []
    left_out: Counter[str] = Counter()
    width, by_tabs, begins = 0, False, True
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = line.removesuffix("\n")
        if not line.strip():
            begins = True
            continue
        if not width:
            by_tabs = "\t" in line and not line.startswith("# ")
        fields = line.split("\t") if by_tabs else re.split("[ \t]+", line.strip(" \t"))
        if _is_comment(line, fields, width, by_tabs=by_tabs, begins=begins):
            left_out["comment lines"] += 1
            continue
        if fields[0] == _DOCUMENT:
            left_out["lines of -DOCSTART-"] += 1
            begins = True
            continue
        width = width or len(fields)
        if len(fields) != width:
            raise RequestError(
                f"{source}, line {number}: the number of columns is {len(fields)}, but the first word has {width}: "
                f"{'one tab separates' if by_tabs else 'spaces separate'} a word from its tag."
            )
        if not fields[0].strip() or not fields[-1].strip():
            raise RequestError(f"{source}, line {number}: the {'word' if not fields[0].strip() else 'tag'} is missing.")
        if begins:
            sentences.append([])
            lines.append(number)
        begins = False
        sentences[-1].append(fields)
    for what, count in left_out.items():
        _log.info("%s: %d %s left out", source, count, what)
    if not sentences:
        raise RequestError(f"{source} holds no rows.")
    if width > 1:
        _check_first_line(sentences, f"{source}, line {lines[0]}")
    columns = {words: [[fields[0] for fields in sentence] for sentence in sentences]}
    if width > 1:
        columns[tags] = [[fields[-1].strip() for fields in sentence] for sentence in sentences]
    return ColumnTable(source, list(columns), columns, lines)


def _check_first_line(sentences: list[list[list[str]]], place: str) -> None:
    """Refuses a header in place of the first word, and logs a line that may be one, as no other has its tag."""
    lines = [(fields[0].strip(), fields[-1].strip()) for sentence in sentences for fields in sentence]
    word, tag = lines[0]
    with_tag = [line for line in lines if line[1] == tag]
    if tag == OUTSIDE or re.fullmatch("[BIESLU](-.*)?", tag) or len(with_tag) == len(lines):
        return
    # Files that were joined repeat it.
    if word.casefold() in _WORD_HEADERS and tag.casefold() in _TAG_HEADERS and set(with_tag) == {lines[0]}:
        raise RequestError(
            f"{place} is a header ({word}, {tag}), not a word with its tag: remove it, wherever it stands."
        )
    if len(with_tag) == 1:
        _log.warning("%s: no other line has the tag %r; remove the line if it is a header", place, tag)


def _is_comment(line: str, fields: list[str], width: int, *, by_tabs: bool, begins: bool) -> bool:
    """Whether a line that begins with `#` is a comment, and not a word: comments stand before a sentence."""
    if not line.startswith("#") or not begins:
        return False
    if by_tabs:
        return "\t" not in line
    if not line.startswith("# "):
        return False
    is_tag = fields[-1] == OUTSIDE or re.fullmatch(r"[BIES](-\S+)?", fields[-1]) is not None
    return len(fields) not in (width or 2, 2) or not is_tag


# Rows


def tagged_rows(table: Table, task: TaskConfig, labels: list[str] | None) -> TaggedRows:
    """Picks the sentences out of a table; where it lacks the column of tags, they have none.

    Args:
        table: Read with the task's columns.
        task: Names the columns.
        labels: Names of the tags; None where they are not looked at.

    Returns:
        Words, where they stand in the text, and tags as numbers.

    Raises:
        RequestError: If a cell holds no words, or the tags do not fit them or are none of `labels`.
    """
    column = task.text_columns[0]
    table.column(column, f"task.text_columns: {column!r}")
    sentences = list(_sentences(table, task))
    if not sentences:
        raise RequestError(f"{table.source} holds no rows.")
    if left_out := sum(number for _, _, _, number in sentences):
        _log.warning(
            "%s: %d entities left out, as they overlap longer ones and a word has one tag", table.source, left_out
        )
    rows = TaggedRows(
        ([text for text, *_ in sentences],),
        None,
        tuple(spans for _, spans, *_ in sentences),
        groups=group_names(table, task),
        table=replace(table, columns={}),
        positions=np.arange(len(sentences)),
    )
    if labels is None or task.label_column not in table.columns:
        return rows
    indices = {name: index for index, name in enumerate(labels)}
    tags = np.empty(len(sentences), dtype=object)
    for row, (_, _, names, _) in enumerate(sentences):
        tags[row] = np.array(
            [_tag_index(name, indices, table, row, word) for word, name in enumerate(names or ())], dtype=np.int64
        )
        if not len(tags[row]):
            raise RequestError(f"{table.place(row)} holds no words.")
    return replace(rows, labels=tags)


def _tag_index(tag: str | int, indices: dict[str, int], table: Table, row: int, word: int) -> int:
    if isinstance(tag, int):
        if 0 <= tag < len(indices):
            return tag
        raise RequestError(f"{_word_place(table, row, word)}: the tag {tag} is none of 0..{len(indices) - 1}.")
    if tag not in indices:
        raise RequestError(
            f"{_word_place(table, row, word)}: the tag {tag!r} is none of task.labels={listed(list(indices))}, which "
            "are those of the training rows unless you give them."
        )
    return indices[tag]


def _sentences(table: Table, task: TaskConfig) -> Iterator[tuple[str, list[Span], list[Any] | None, int]]:
    """Yields for each row text, word spans, tags (names or numbers; None for no tags), number of entities left out."""
    cells = table.columns[task.text_columns[0]]
    labels = table.columns.get(task.label_column)
    for row, cell in enumerate(cells):
        place, left_out = table.place(row), 0
        if isinstance(cell, str):
            text, spans = check_text(cell, place), split_text(cell, task.units)
            tags: list[Any] | None = None
            if labels is not None:
                tags, left_out = _tags_of_entities(text, spans, labels[row], place)
        else:
            words = _word_list(cell, table, row)
            ends = np.cumsum([len(word) + 1 for word in words]).tolist()
            spans = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
            text, tags = " ".join(words), None if labels is None else _tag_list(labels[row], len(words), place)
        yield text, spans, tags, left_out


def _word_list(cell: Any, table: Table, row: int) -> list[str]:
    if not isinstance(cell, list):
        raise RequestError(f"{table.place(row)}: there must be a list of words or a text, not {type(cell).__name__}.")
    for number, word in enumerate(cell):
        place = _word_place(table, row, number)
        if not isinstance(word, str) or not word:
            raise RequestError(f"{place}: a word must be text and not empty, but here is {word!r}.")
        check_text(word, place)
    return cell


def _tag_list(cell: Any, num_words: int, place: str) -> list[Any]:
    kinds = {type(tag) for tag in cell} if isinstance(cell, list) else {type(cell)}
    if not isinstance(cell, list) or not (kinds <= {str} or kinds <= {int}):
        raise RequestError(f"{place}: the tags must be a list of names, or of numbers.")
    if len(cell) != num_words:
        raise RequestError(f"{place}: the number of tags is {len(cell)}, but the number of words {num_words}.")
    return cell


def _tags_of_entities(text: str, spans: list[Span], cell: Any, place: str) -> tuple[list[str], int]:
    """Tags of the scheme BIO from `{type: {surface: [[begin, end], ...]}}`, where the end is the last character.

    Of entities that overlap, the longest is taken, and of equally long ones the first.

    Returns:
        The tags, and the number of entities that were left out.
    """
    begins = {begin: number for number, (begin, _) in enumerate(spans)}
    ends = {end: number for number, (_, end) in enumerate(spans)}
    entities: list[tuple[int, int, str]] = []
    for kind, surface, begin, end in _entities_of_cell(cell, place):
        if end >= len(text):
            raise RequestError(
                f"{place}: the entity {surface!r} ends at character {end}, but the last one of the text is "
                f"{len(text) - 1}: count from 0, to the last character of the entity."
            )
        if text[begin : end + 1] != surface or not surface:
            raise RequestError(
                f"{place}: the characters {begin} to {end} are {text[begin : end + 1]!r}, not {surface!r}: count from "
                "0, to the last character of the entity."
            )
        if begin not in begins or end + 1 not in ends:
            raise RequestError(
                f"{place}: the entity {surface!r} begins or ends within a word: give task.units=characters."
            )
        entities.append((begins[begin], ends[end + 1] + 1, kind))
    tags, left_out = [OUTSIDE] * len(spans), 0
    for first, last, kind in sorted(set(entities), key=lambda entity: (entity[0] - entity[1], entity)):
        if set(tags[first:last]) != {OUTSIDE}:
            left_out += 1
            continue
        tags[first:last] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first - 1)
    return tags, left_out


def _entities_of_cell(cell: Any, place: str) -> Iterator[tuple[str, str, int, int]]:
    form = "entities must be written as {type: {surface: [[begin, end], ...]}}"
    for kind, surfaces in _items(cell, place, form):
        for surface, positions in _items(surfaces, place, form):
            for position in positions if isinstance(positions, list) else [None]:
                if not isinstance(position, list) or len(position) != 2 or set(map(type, position)) != {int}:
                    raise RequestError(f"{place}: {form}.")
                yield kind, surface, *position


def _items(cell: Any, place: str, form: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(cell, dict):
        raise RequestError(f"{place}: {form}.")
    # In a parquet column, each row has the keys of all rows.
    return ((name, value) for name, value in cell.items() if value is not None)
