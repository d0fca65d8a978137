"""`predictions.parquet`: a run's outputs, row by row, which lie next to its record.

Tests of rows and metrics that were not asked for are computed from it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.process import atomic_write

PREDICTIONS_FILE = "predictions.parquet"

# Logits of more classes than this are kept in half precision.
_MOST_FULL_CLASSES = 20


@dataclass(frozen=True)
class Predictions:
    """Outputs of one run's selected weights on the rows of one split, in the split's order.

    Attributes:
        row_ids: Names of the rows, shape (rows,): the first 16 hexadecimal digits of the SHA-256 of a row's text
            columns. Rows with equal texts have one name; readers pair them in their order.
        labels: Class indices, or the values of a regression task, shape (rows,).
        outputs: One logit a class, or the one predicted value, shape (rows, outputs).
    """

    row_ids: NDArray[Any]
    labels: NDArray[Any]
    outputs: NDArray[Any]

    @property
    def predicted(self) -> NDArray[Any]:
        """Class indices, or the predicted values of a regression task; shape (rows,)."""
        return predicted(self.outputs)

    def take(self, indices: NDArray[Any]) -> Predictions:
        """The rows at these positions, in this order."""
        return Predictions(self.row_ids[indices], self.labels[indices], self.outputs[indices])


def predicted(outputs: NDArray[Any]) -> NDArray[Any]:
    """Returns class indices, or the values themselves if there is one output; shape (rows,)."""
    return outputs[:, 0].astype(np.float64) if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def write_predictions(folder: Path, by_split: Mapping[str, Predictions]) -> None:
    """Writes the predictions of a run's splits by an atomic rename.

    Args:
        folder: The run's folder.
        by_split: Predictions by split: `report`, `selection` if these are other rows, and the task's extra splits by
            their names.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = [_table(split, predictions) for split, predictions in by_split.items()]
    # Splits may have other classes than the task's own.
    table = pa.concat_tables(tables, promote_options="default")
    with atomic_write(folder / PREDICTIONS_FILE) as partial, partial.open("wb") as stream:
        parquet.write_table(table, stream, compression="zstd", use_dictionary=["split"])


def _table(split: str, predictions: Predictions) -> Any:
    import pyarrow as pa

    outputs = predictions.outputs.astype(np.float32)
    num_outputs = outputs.shape[1]
    if num_outputs > _MOST_FULL_CLASSES:
        outputs = _in_half_precision(outputs)
    names = ["value"] if num_outputs == 1 else [f"logit_{index}" for index in range(num_outputs)]
    columns: dict[str, Any] = {
        "split": pa.array([split] * len(outputs)).dictionary_encode(),
        "row_id": pa.array(predictions.row_ids),
        "label": pa.array(predictions.labels),
    }
    return pa.table(columns | {name: outputs[:, index] for index, name in enumerate(names)})


def _in_half_precision(logits: NDArray[Any]) -> NDArray[Any]:
    """Rounds logits to float16 so that the predicted class stays the same; too large ones are not rounded."""
    with np.errstate(over="ignore"):
        rounded = logits.astype(np.float16)
    if not np.isfinite(rounded).all():
        return logits
    rows, classes = np.arange(len(logits)), logits.argmax(axis=1)
    tied = rounded.argmax(axis=1) != classes
    raised = np.nextafter(rounded[rows, classes], np.float16(np.inf))
    rounded[rows, classes] = np.where(tied, raised, rounded[rows, classes])
    return rounded


def read_predictions(folder: Path, split: str = "report") -> Predictions | None:
    """Reads the predictions of one split.

    Args:
        folder: The run's folder.
        split: `report`, `selection`, or the name of an extra split.

    Returns:
        The predictions; None where the run has kept none of this split.

    Raises:
        ValueError: If the file is broken.
    """
    import pyarrow as pa
    from pyarrow import parquet

    file = folder / PREDICTIONS_FILE
    if not file.is_file():
        return None
    try:
        table = parquet.read_table(file, filters=[("split", "=", split)])
        names = [name for name in table.column_names if name == "value" or name.startswith("logit_")]
        columns = [table[name].to_numpy() for name in names]
        # A split with fewer classes than another has no values in the columns of the rest.
        outputs = [column for column in columns if not np.isnan(column).all()]
        found = Predictions(
            np.asarray(table["row_id"].to_pylist()),
            table["label"].to_numpy(),
            np.stack(outputs, axis=1).astype(np.float32) if outputs else np.empty((0, 0), np.float32),
        )
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; the run made again with force=true replaces it") from error
    return found if len(found.labels) else None
