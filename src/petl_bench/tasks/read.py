"""Tables of rows: from files (CSV, TSV, JSON lines, parquet), from a hub dataset or a local folder laid out like it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
