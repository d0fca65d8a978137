"""Tables from files: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(path: str | Path, key: str) -> pd.DataFrame:
    """Reads a table; its format is told by the file's ending.

    Args:
        path: The file.
        key: The setting that named it, for messages.

    Raises:
        RequestError: where it is missing, of another format, or broken.
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
        words: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
        if file.suffix == ".tsv":
            # As in GLUE's own files: a quotation mark is a character like any other.
            return pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE, **words)
        return pd.read_csv(file, **words)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise RequestError(f"{key}={file} is truncated or not {file.suffix[1:]}: {error}") from error
