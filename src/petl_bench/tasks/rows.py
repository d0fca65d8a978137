"""Rows of a task: read from files or from a hub dataset, then texts and labels whatever they were read from."""

from __future__ import annotations

import csv
import hashlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.errors import RequestError, RunError
from petl_bench.tasks.config import TaskConfig

if TYPE_CHECKING:
    import pandas as pd


FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(path: str | Path, key: str) -> pd.DataFrame:
    """Reads a table; the file's ending gives its format.

    Args:
        path: The file.
        key: The setting that named it, for messages.

    Raises:
        RequestError: If it is missing, of another format, or broken.
    """
    import pandas as pd

    file = Path(path).expanduser()
    if file.suffix not in FORMATS:
        raise RequestError(f"{key}={file}: the ending must be one of {', '.join(FORMATS)}.")
    if not file.is_file():
        raise RequestError(f"{key}={file}: there is no such file.")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        if file.suffix == ".jsonl":
            return pd.read_json(file, lines=True, dtype=False, convert_dates=False)
        # Everything is text, and only an empty field is missing: "null", "NA" and "007" stay what they are.
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
        if file.suffix == ".tsv":
            # As in GLUE's own files: a quotation mark is a character like any other.
            return pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE, **options)
        return pd.read_csv(file, **options)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise RequestError(f"{key}={file} is truncated or not {file.suffix[1:]}: {error}") from error


def read_hub_split(task: TaskConfig, subset: str, split: str, data_root: str | None) -> pd.DataFrame:
    """Reads one split as a table.

    Args:
        task: Names the dataset and its revision.
        subset: The dataset's config, e.g. `mrpc`.
        split: e.g. `validation_matched`.
        data_root: A folder that holds `<subset>/<split>-*.parquet`; None asks the hub (or its local cache).

    Raises:
        RequestError: If the folder does not hold the split, or a file in it is broken.
        RunError: If the hub cannot be reached.
    """
    import datasets

    if data_root is not None or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if data_root is not None:
        return _read_folder(Path(data_root).expanduser(), subset, split)
    assert task.dataset
    try:
        # Never a bare name: offline, `glue` would match any cached local folder of that name.
        loaded = datasets.load_dataset(task.dataset, subset, split=split, revision=task.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ValueError) and "find cache" not in str(error):
            raise RequestError(f"{task.dataset} has no split {subset}/{split}: {error}") from error
        raise RunError(
            f"{task.dataset} ({subset}) could not be fetched and is not in the local cache: run `petl-bench fetch "
            f"task={task.name}` where there is a network, or point data_root=DIR (or PETL_BENCH_DATA) at a folder "
            f"laid out like it. ({type(error).__name__})"
        ) from error
    return loaded.to_pandas()


def _read_folder(root: Path, subset: str, split: str) -> pd.DataFrame:
    import datasets

    if not root.is_dir():
        raise RequestError(f"data_root={root}: there is no such folder.")
    files = split_files(root, subset, split)
    if not files:
        there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        raise RequestError(
            f"data_root={root} holds no {subset}/{split}-*.parquet (folders there: {', '.join(there) or 'none'})."
        )
    for file in files:
        _check_parquet(file)
    loaded = datasets.load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)
    return loaded.to_pandas()


def split_files(root: Path, subset: str, split: str) -> list[Path]:
    """The parquet files of one split in a local folder."""
    return sorted((root / subset).glob(f"{split}-*.parquet"))


def _check_parquet(file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        parquet.ParquetFile(file).read()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise RequestError(f"{file} is truncated or no parquet file: copy it again. ({error})") from error


UNLABELLED = -1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Rows in order.

    Attributes:
        texts: One list a text column, all of the same length.
        labels: Class indices (int64) or targets (float64), shape (rows,); None where there are none.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.texts[0])

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at these positions, in this order."""
        return Rows(
            tuple([column[i] for i in indices] for column in self.texts),
            None if self.labels is None else self.labels[indices],
        )

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


def rows_from_table(table: pd.DataFrame, task: TaskConfig, labels: list[str] | None, where: str) -> Rows:
    """Picks the task's columns out of a table.

    Args:
        table: Any columns.
        task: Names the text columns and the label column.
        labels: Names of the classes; None for regression.
        where: What the table was read from, for messages.

    Raises:
        RequestError: If a text column is missing or a label is none of `labels`.
    """
    if len(table) == 0:
        raise RequestError(f"{where} holds no rows.")
    texts = tuple(_text_column(table, column, where) for column in task.text_columns)
    values = None
    if task.label_column in table:
        # Only the hub's class labels are numbered by their names; in a file, 1 may be the label "1".
        values = _label_values(table[task.label_column], labels, where, numbered=task.source == "hub")
    return Rows(texts, values)


def require_labels(rows: Rows, task: TaskConfig, where: str) -> Rows:
    """Returns the rows.

    Raises:
        RequestError: If they have no label column, or it hides the labels.
    """
    if rows.labels is None:
        raise RequestError(f"task.label_column={task.label_column} is not a column of {where}.")
    if task.type == "classification" and (rows.labels == UNLABELLED).any():
        raise RequestError(f"{where} hides its labels (-1): it can be predicted but not trained or scored on.")
    return rows


def _text_column(table: pd.DataFrame, column: str, where: str) -> list[str]:
    if column not in table:
        raise RequestError(
            f"task.text_columns: {column!r} is not a column of {where}, which has {', '.join(map(str, table.columns))}."
        )
    values = table[column]
    if missing := int(values.isna().sum()):
        _log.warning("%s: %d empty texts in column %r", where, missing, column)
    return ["" if empty else str(value) for value, empty in zip(values, values.isna(), strict=True)]


def _label_values(column: pd.Series[Any], labels: list[str] | None, where: str, *, numbered: bool) -> np.ndarray:
    if column.isna().any():
        raise RequestError(f"{where}: row {int(column.isna().to_numpy().argmax())} has no label in {column.name!r}.")
    if labels is None:
        try:
            return column.astype("float64").to_numpy()
        except (ValueError, TypeError) as error:
            raise RequestError(f"{where}: the column {column.name!r} is not numeric ({error}).") from error
    if numbered and column.dtype.kind in "iu" and set(column.unique()) <= set(range(UNLABELLED, len(labels))):
        return column.astype("int64").to_numpy()
    index = {label: i for i, label in enumerate(labels)}
    names = [label_name(value) for value in column]
    if unknown := next((name for name in names if name not in index), None):
        raise RequestError(f"{where}: the label {unknown!r} is none of task.labels={labels}.")
    return np.array([index[name] for name in names], dtype="int64")


def label_name(value: Any) -> str:
    """How a label is written: whole numbers without the `.0` that a table with gaps gives them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
