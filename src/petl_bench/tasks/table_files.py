"""Reads tables from files strictly: content that is not in the format of the file's name is refused with its line."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError, first_line, listed
from petl_bench.process import check_folder, user_path

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_JSON_LINES = (".jsonl", ".json")
# The data sets that ship with the package, a folder each; `task.dataset` names it.
PACKAGE_DATA = Path(__file__).parent / "data"
# A part of a data set in several files, e.g. train-00000-of-00003.parquet; older ones end in a hash.
_NUMBERED_PART = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet", re.IGNORECASE)
# Words that files of one split begin with.
_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "eval", "test"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Columns of a table.

    Attributes:
        source: What it was read from, for messages.
        names: The names of all its columns.
        columns: The values of the columns that were read; None where one is missing. CSV and TSV files contain
            only text, JSON lines and parquet the types that they were written with.
        lines: The line of the file on which each row begins; None for formats without lines.
    """

    source: str
    names: list[str]
    columns: dict[str, list[Any]]
    lines: list[int] | None = None

    def place(self, row: int) -> str:
        """Where a row is, for messages; the first one has index 0."""
        return f"{self.source}, row {row + 1}" if self.lines is None else f"{self.source}, line {self.lines[row]}"

    @property
    def num_rows(self) -> int:
        """Number of rows of the columns that were read."""
        return len(next(iter(self.columns.values()), []))

    def take(self, rows: list[int]) -> Table:
        """The table of some of its rows, in this order."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines and [self.lines[row] for row in rows])

    def column(self, name: str, key: str) -> list[Any]:
        """The values of a column.

        Args:
            name: The column.
            key: How the message begins: the setting that names the column.

        Raises:
            RequestError: If there is no such column.
        """
        if name not in self.columns:
            there = _columns_and_nearest(self.names, name)
            raise RequestError(f"{key} is not a column of {self.source}, which has {there}")
        return self.columns[name]


def _columns_and_nearest(names: Collection[str], missing: str) -> str:
    """The end of a message: the names of all columns, and the one nearest to the missing name."""
    text = f"{', '.join(map(repr, names))}."
    folded = {name.strip().casefold(): name for name in names}
    near = difflib.get_close_matches(missing.strip().casefold(), folded, n=1, cutoff=0.75)
    if not near:
        return text
    name = folded[near[0]]
    if name == name.strip():
        return f"{text} Did you mean {name!r}?"
    # Hydra would strip the spaces.
    return f"""{text} Did you mean {name!r}, with a space at an end? Write it as '"{name}"'."""


def read_table(
    path: str | Path, key: str, columns: Collection[str], read_text: Callable[[str, str], Table] | None = None
) -> Table:
    """Reads a table; the file's ending gives its format.

    Args:
        path: A file in one of `FORMATS`, which may be compressed (`.csv.gz`), or a folder of `.parquet` files.
        key: The setting that named it, for messages.
        columns: The columns to read; those that the table lacks are left out.
        read_text: Reads files of all endings but `.jsonl`, `.json` and `.parquet`, from their text and their name for
            messages; None: only those in `FORMATS` are read.

    Returns:
        The table, with the values of those columns.

    Raises:
        RequestError: If it is missing, of another format, or not what its ending says.
    """
    where = f"{key}={path}"
    with _system_errors_explained(where):
        file = user_path(path, key)
        if file.is_dir():
            parts = parquet_files(file)
            if not parts or any(inner.suffix.lower() == ".parquet" for inner in file.glob("*/*")):
                raise RequestError(f"{where} is a folder: give a file, or a folder of .parquet files and no folders.")
            return read_parquet(parts, str(file), columns)
        name = file.name.lower()
        compressed = name.endswith(".gz")
        ending = Path(name.removesuffix(".gz")).suffix
        by_reader = read_text is not None and ending not in (*_JSON_LINES, ".parquet")
        if not by_reader and (ending not in FORMATS or (compressed and ending == ".parquet")):
            raise RequestError(
                f"{where}: the ending must be one of {', '.join(FORMATS)}; all but the last may be followed by .gz."
            )
        if not file.is_file():
            raise RequestError(f"{where}: there is no such file." if not file.exists() else f"{where} is no file.")
        if ending == ".parquet":
            return read_parquet([file], str(file), columns)
        content = file.read_bytes()
        text = _decoded(gzip.decompress(content) if compressed else content, str(file))
    if read_text is not None and by_reader:
        table = read_text(text, str(file))
    elif ending in _JSON_LINES:
        table = _json_lines(text, str(file))
    else:
        table = _delimited(text, str(file), tabs=ending == ".tsv")
    return replace(table, columns={name: values for name, values in table.columns.items() if name in columns})


@contextmanager
def _system_errors_explained(where: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{where} is truncated or not compressed by gzip: {error}.") from error
    except OSError as error:
        raise RequestError(f"{where} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # of pathlib: a path that holds a zero byte
        raise RequestError(f"{where} is no path: {first_line(error)}.") from error


def _decoded(content: bytes, source: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 if it begins with their byte order mark."""
    # The mark of UTF-32 begins with that of UTF-16.
    marks = {"utf-32": (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "utf-16": (b"\xff\xfe", b"\xfe\xff")}
    encoding = next((name for name, of_name in marks.items() if content.startswith(of_name)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_of(content[: error.start].decode("latin-1"))
        raise RequestError(
            f"{source}, line {line}: the byte 0x{content[error.start]:02x} is no text in "
            f"{encoding.removesuffix('-sig').upper()}: save the file in UTF-8."
        ) from error
    if (position := text.find("\0")) >= 0:
        raise RequestError(f"{source}, line {_line_of(text[:position])} holds a zero byte: save the file in UTF-8.")
    return text


def _line_of(before: str) -> int:
    """The number of the line that begins in, or follows, this text."""
    return len(re.findall(r"\r\n|\r|\n", before)) + 1


def _delimited(text: str, source: str, *, tabs: bool) -> Table:
    """Reads comma-separated values with quotation marks, or tab-separated ones without."""
    csv.field_size_limit(2**31 - 1)
    if not tabs:
        _check_separator(text, source)
    stream = io.StringIO(text, newline="")
    # As in GLUE's own files, a quotation mark in a .tsv file is a character like any other.
    reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(stream, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    blank, line = None, 1
    try:
        for fields in reader:
            if not fields:
                blank = blank or line
            elif not header:
                header = fields
            else:
                _check_fields(fields, header, f"{source}, line {line}", blank, tabs=tabs)
                rows.append(fields)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise RequestError(
            f"{source}, line {line}: a quotation mark is not closed, or something follows it ({error}). A field that "
            'begins with a quotation mark must end with one; inside, it is written as "".'
        ) from error
    if not header:
        raise RequestError(f"{source} is empty.")
    _check_names(header, source)
    if tabs and (quoted := sum(len(field) > 1 and field[0] == field[-1] == '"' for fields in rows for field in fields)):
        _log.warning(
            "%s: %d fields begin and end with a quotation mark, which is part of the text in a .tsv file; if it "
            "encloses them, save the file as .csv",
            *(source, quoted),
        )
    columns = {name: [fields[i] or None for fields in rows] for i, name in enumerate(header) if name.strip()}
    return Table(source, [name for name in header if name.strip()], columns, lines)


def _check_separator(text: str, source: str) -> None:
    """Refuses comma-separated values whose first lines all contain another separator and no comma."""
    first = [line.strip() for line in islice(io.StringIO(text, newline=None), 3) if line.strip()]
    if len(first) < 2 or "," in first[0] or re.fullmatch('"[^"]*"', first[0]):
        return
    for separator, name, way_out in (
        ("\t", "tab", "rename it to .tsv"),
        (";", "semicolon", "save it with commas, or with tabs as .tsv"),
    ):
        if all(separator in line for line in first):
            raise RequestError(
                f"{source}: no comma separates fields in its header, but each of its first lines holds a {name}: "
                f"{way_out}; put the header in quotation marks if it names a single column."
            )


def _check_fields(fields: list[str], header: list[str], place: str, blank: int | None, *, tabs: bool) -> None:
    if blank is not None and len(header) == 1:
        raise RequestError(
            f'{place} follows an empty line ({blank}), which may be a row or none: write an empty text as "" in a '
            ".csv file, or remove the line."
        )
    if len(header) > 1 and [fields[0].removeprefix("\ufeff"), *fields[1:]] == header:
        raise RequestError(f"{place} repeats the header: remove that line, or rename a column if it is a row.")
    if len(fields) != len(header):
        separator = "tab" if tabs else "comma"
        hint = "" if tabs else ", and quotation marks enclose a text that holds one"
        raise RequestError(
            f"{place}: the number of fields is {len(fields)}, but the header has {len(header)}: one {separator} "
            f"separates two fields{hint}."
        )


def _check_names(names: Iterable[str], source: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise RequestError(f"{source}: the column name {twice[0]!r} occurs twice: rename or remove one of them.")


def _json_lines(text: str, source: str) -> Table:
    """Reads a table of one JSON object a line."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{source}, line {number} is truncated or no JSON object ({first_line(error)}): the file must "
                "hold one object a line."
            ) from error
        if not isinstance(row, dict):
            raise RequestError(f"{source}, line {number} is no JSON object: the file must hold one object a line.")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise RequestError(f"{source} holds no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(source, names, {name: [row.get(name) for row in rows] for name in names}, lines)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return content


def read_parquet(files: list[Path], source: str, columns: Collection[str]) -> Table:
    """Reads the parts of a table, one after the other.

    Args:
        files: The parts in order; at least one.
        source: What they are called in messages.
        columns: The columns to read; those that the table lacks are left out.

    Returns:
        The whole table, with the values of those columns.

    Raises:
        RequestError: If a part is broken, or has other columns than the first.
    """
    import pyarrow
    from pyarrow import parquet

    _check_parts(files)
    names: list[str] = []
    values: dict[str, list[Any]] = {}
    for file in files:
        content = file.read_bytes()
        try:
            part = parquet.ParquetFile(pyarrow.BufferReader(content), page_checksum_verification=True)
            own = part.schema_arrow.names
            _check_names(own, str(file))
            read = part.read(columns=[name for name in own if name in columns])
        except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
            message = f"{file} is truncated or no parquet file: copy it again. ({first_line(error)})"
            raise RequestError(message) from error
        if others := sorted(set(own) ^ set(names or own)):
            message = f"{file} and {files[0]} are parts of one table, but only one has the column {others[0]!r}."
            raise RequestError(message)
        names = names or own
        for name in read.column_names:
            try:
                values.setdefault(name, []).extend(read.column(name).to_pylist())
            except (pyarrow.ArrowException, OverflowError, ValueError, NotImplementedError) as error:
                message = f"{file}: a value in the column {name!r} cannot be read: correct it or remove the column."
                raise RequestError(f"{message} ({first_line(error)})") from error
    return Table(source, names, values)


def _check_parts(files: list[Path]) -> None:
    """Checks that files are parts of one table, and numbered ones all there, each once."""
    matches = [_NUMBERED_PART.fullmatch(file.name) for file in files]
    names = {match[1] if match else file.stem for match, file in zip(matches, files, strict=True)}
    splits = {re.split("[^A-Za-z]", name.lower())[0] for name in names}
    if len(names) > 1 and (any(matches) or (len(splits) > 1 and splits & _SPLITS)):
        raise RequestError(
            f"{files[0].parent} holds parts of several tables, {listed(sorted(names))}: give each a folder of its own."
        )
    parts = sorted((int(match[3]), int(match[2])) for match in matches if match)
    total = parts[0][0] if parts else 0
    if parts != [(total, number) for number in range(total)]:
        raise RequestError(
            f"{files[0].parent}: the {len(parts)} files {names.pop()}-*.parquet are not all the parts of one table "
            f"(00000 to {total - 1:05d} of {total:05d}): copy the missing ones, or remove those of another table."
        )


def parquet_files(folder: Path, prefix: str = "") -> list[Path]:
    """The parts of a table in a folder, in the order of their names; hidden files are ignored."""
    files = (file for file in folder.glob(f"{escape(prefix)}*") if not file.name.startswith((".", "_")))
    return sorted(file for file in files if file.suffix.lower() == ".parquet")


def read_folder(root: Path, subset: str | None, split: str, columns: Collection[str]) -> Table:
    """Reads one split of a local folder, which holds what `split_files` finds.

    Args:
        root: The folder.
        subset: The data set's config, a folder there; None for a data set without configs.
        split: e.g. `validation_matched`.
        columns: The columns to read; those that the table lacks are left out.

    Returns:
        The split's table, with the values of those columns.

    Raises:
        RequestError: If the folder does not hold the split, or a file in it is broken.
    """
    check_folder(root, "data_root")
    if not (files := split_files(root, subset, split)):
        there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        below = [f" data_root={root / name} does." for name in there if split_files(root / name, subset, split)]
        raise RequestError(
            f"data_root={root} holds no {'' if subset is None else f'{subset}/'}{split}-*.parquet (folders there: "
            f"{', '.join(there) or 'none'}), and no {split}.json in its place.{''.join(below[:1])}"
        )
    if files[0].suffix in _JSON_LINES:
        return read_table(files[0], "data_root", columns)
    return read_parquet(files, split if subset is None else f"{subset}/{split}", columns)


def split_files(root: Path, subset: str | None, split: str) -> list[Path]:
    """The files of one split in a local folder.

    They are `<subset>/<split>-*.parquet`, or else JSON lines, `<subset>/<split>.json`; the validation split may then be
    called `dev`, as in the archives of CLUE. Without a subset they may be in `data/`.
    """
    folders = [root, root / "data"] if subset is None else [root / subset]
    names = [escape(split), *(["dev"] if split == "validation" else [])]
    parts = (parquet_files(folder, f"{split}-") for folder in folders)
    patterns = (f"{name}{ending}" for name in names for ending in _JSON_LINES)
    in_lines = (sorted(folder.glob(pattern)) for pattern in patterns for folder in folders)
    return next((files for files in (*parts, *in_lines) if files), [])
