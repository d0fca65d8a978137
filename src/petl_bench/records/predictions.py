"""`predictions.parquet`: a run's outputs, row by row, stored next to its record.

Tests over rows, and metrics that the run did not compute, can be computed from it later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.process import atomic_write
from petl_bench.records.reading import Number

PREDICTIONS_FILE = "predictions.parquet"

# With more classes than this, logits are stored in half precision.
_MOST_FULL_CLASSES = 20

# Prefix of the column names of `Predictions.scores`.
_SCORE = "score_"


@dataclass
class OodScore:
    """How well one score separates rows of the task's classes from rows that are out of distribution.

    Rows of the task's classes are the positives in `aupr_in`, the others in `aupr_out`. `threshold` is fitted on the
    selection rows: 95 % of them reach it.
    """

    auroc: Number
    aupr_in: Number
    aupr_out: Number
    fpr95: Number
    threshold: Number


@dataclass
class Ood:
    """Out-of-distribution rows, and four scores that separate them from the report rows.

    See `petl_bench.run.ood_detection`. `classes` are the trained classes, in the order of the logits.
    """

    kind: str
    share: Number | None
    classes: list[str]
    num_examples: int
    fpr_rule: str
    msp: OodScore
    energy: OodScore
    mahalanobis: OodScore
    cosine: OodScore


@dataclass(frozen=True)
class TypeScores:
    """How well entities of one type are found; `support` is their number. Undefined scores are 0."""

    precision: Number
    recall: Number
    f1: Number
    support: int


@dataclass(frozen=True)
class Tagging:
    """What a record stores about a tagging task.

    Attributes:
        scheme: IO, BIO or BIOES.
        words_cut: By split, the number of words that the model does not see because `task.max_length` cuts them off or
            the tokenizer produces no token for them. They are scored as outside of entities.
        entities_cut: By split, the number of entities with such a word.
        without_beginning: By split, the number of entities that begin with the tag of an inner word; they count.
        types: The scores of each entity type on the report split, with the selected weights.
    """

    scheme: str
    words_cut: dict[str, int]
    entities_cut: dict[str, int]
    without_beginning: dict[str, int]
    types: dict[str, TypeScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Outputs of one run's selected weights on the rows of one split, in the split's order.

    Attributes:
        row_ids: Row ids, shape (rows,): the first 16 hexadecimal digits of the SHA-256 of a row's text columns. Rows
            with equal texts share an id; readers pair them in order.
        labels: Class indices, or the values of a regression task, shape (rows,). For tagging and multi-label tasks, one
            tuple of names per row, as `names_by_row` returns them: the tags of its words, or its labels.
        outputs: One logit per class, or the one predicted value, shape (rows, outputs); no outputs for tagging.
        names: The predicted names in tagging and multi-label tasks, like `labels`; None for other tasks.
        scores: Further numbers per row by name, shape (rows,): how far it is in distribution (`petl_bench.run`).
    """

    row_ids: NDArray[Any]
    labels: NDArray[Any]
    outputs: NDArray[Any]
    names: NDArray[Any] | None = None
    scores: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def predicted(self) -> NDArray[Any]:
        """Class indices, predicted values of a regression task, or predicted names; shape (rows,)."""
        return predicted(self.outputs) if self.names is None else self.names

    def take(self, indices: NDArray[Any]) -> Predictions:
        """The rows at these positions, in this order."""
        names = None if self.names is None else self.names[indices]
        scores = {name: values[indices] for name, values in self.scores.items()}
        return Predictions(self.row_ids[indices], self.labels[indices], self.outputs[indices], names, scores)


def names_by_row(rows: Iterable[Iterable[str]]) -> NDArray[Any]:
    """Returns the names of each row as an array of tuples with dtype object, shape (rows,)."""
    tuples = [tuple(row) for row in rows]
    array = np.empty(len(tuples), dtype=object)
    # In a single assignment, NumPy would turn tuples of equal length into a second dimension.
    for index, names in enumerate(tuples):
        array[index] = names
    return array


def predicted(outputs: NDArray[Any]) -> NDArray[Any]:
    """Returns class indices, or the values themselves if there is one output; shape (rows,)."""
    return outputs[:, 0].astype(np.float64) if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def write_predictions(folder: Path, by_split: Mapping[str, Predictions]) -> None:
    """Writes the predictions of a run's splits with an atomic rename.

    Args:
        folder: The run's folder.
        by_split: Predictions by split: `report`, `selection` if its rows are different ones, `ood` for rows that are
            out of distribution (labelled -1), and the task's extra splits by name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = [_table(split, predictions) for split, predictions in by_split.items()]
    # The classes of a split may differ from those of the task.
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
        "label": _label_column(predictions.labels),
    }
    if predictions.names is not None:
        columns["predicted"] = _label_column(predictions.names)
    columns |= {f"{_SCORE}{name}": values for name, values in predictions.scores.items()}
    return pa.table(columns | {name: outputs[:, index] for index, name in enumerate(names)})


def _label_column(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.dtype != object:
        return pa.array(values)
    return pa.array([list(names) for names in values], type=pa.list_(pa.string()))


def _in_half_precision(logits: NDArray[Any]) -> NDArray[Any]:
    """Rounds logits to float16 without changing the predicted class; returns them as they are if one is too large."""
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
        The predictions; None if the run kept none for this split.

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
        # If a split has fewer classes than another, its columns for the missing classes hold no values.
        outputs = [column for column in columns if not np.isnan(column).all()]
        in_names = "predicted" in table.column_names
        predictions = Predictions(
            np.asarray(table["row_id"].to_pylist()),
            names_by_row(table["label"].to_pylist()) if in_names else table["label"].to_numpy(),
            np.stack(outputs, axis=1).astype(np.float32) if outputs else np.empty((len(table), 0), np.float32),
            names_by_row(table["predicted"].to_pylist()) if in_names else None,
            {
                name.removeprefix(_SCORE): values
                for name in table.column_names
                if name.startswith(_SCORE) and not np.isnan(values := table[name].to_numpy()).all()
            },
        )
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; the run made again with force=true replaces it") from error
    return predictions if len(predictions.labels) else None
