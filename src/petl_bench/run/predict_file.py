"""Predictions of a file's rows: scored where the file has labels, written as CSV, JSON lines or parquet."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np

from petl_bench.errors import RequestError, RunError, first_line, listed
from petl_bench.process import atomic_write, user_path
from petl_bench.records.predictions import names_by_row
from petl_bench.reports.fields import shown_score
from petl_bench.run.predict import Prediction, Predictor, as_lines
from petl_bench.tasks import TaskConfig
from petl_bench.tasks.load import columns_of_texts, find_labels, load_task, read_file, rows_of_table
from petl_bench.tasks.metrics import compute_metrics, entity_tags
from petl_bench.tasks.ood import known_classes
from petl_bench.tasks.rows import UNLABELLED, Rows, is_missing, label_name
from petl_bench.tasks.table_files import Table, read_table

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilePredictions:
    """The predictions of a file's rows, and how they compare with its labels.

    Attributes:
        predictor: The run's model.
        ids: The names of the rows, in order.
        texts: Their texts by column.
        gold: Their labels as the file has them; None where it has no column of labels.
        predictions: The answers.
        scores: The run's metrics on the rows that have a label; empty where none has.
        num_scored: The number of these rows.
    """

    predictor: Predictor
    ids: list[Any]
    texts: dict[str, list[str]]
    gold: list[Any] | None
    predictions: list[Prediction]
    scores: dict[str, float]
    num_scored: int

    def lines(self, *, as_json: bool) -> Iterator[str]:
        """What `petl-bench predict` prints for each row."""
        return as_lines(self.predictor, self.predictions, as_json=as_json)

    def summary(self) -> dict[str, Any]:
        """Numbers of rows, and the scores."""
        return {"rows": len(self.ids), "scored_rows": self.num_scored, "scores": self.scores}

    def __str__(self) -> str:
        scores = ", ".join(shown_score(name, value) for name, value in self.scores.items())
        return f"{len(self.ids):,} rows" + (f"; {self.num_scored:,} of them have a label: {scores}" if scores else "")

    def write(self, out: str) -> None:
        """Writes one line per row to a .csv, .jsonl or .parquet file.

        Raises:
            RequestError: If the file's ending is none of these, or a text column is called like a column of answers.
        """
        suffix, answers = check_out(out), [_content(prediction) for prediction in self.predictions]
        if suffix != ".jsonl":
            answers = [_flat(answer) for answer in answers]
        columns = [("id", self.ids), *self.texts.items(), *([] if self.gold is None else [("gold", self.gold)])]
        names = [*(name for name, _ in columns), *answers[0]]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RequestError(f"--out has a column {twice[0]!r} of its own: rename the column of the texts.")
        lines = [{name: values[row] for name, values in columns} | answer for row, answer in enumerate(answers)]
        with atomic_write(user_path(out, "--out")) as partial:
            _WRITERS[suffix](lines, partial)


def check_out(out: str) -> str:
    """The ending of the file that predictions go to.

    Raises:
        RequestError: If there is no such format.
    """
    if (suffix := Path(out).suffix) not in _WRITERS:
        raise RequestError(f"--out={out}: the ending must be one of {', '.join(_WRITERS)}.")
    return suffix


def _content(prediction: Prediction) -> dict[str, Any]:
    return {name: value for name, value in asdict(prediction).items() if value is not None and name != "text"}


def _flat(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with one column per probability."""
    shares = answer.pop("probabilities", {})
    return answer | {f"p({label})": share for label, share in shares.items()}


def _write_csv(lines: list[dict[str, Any]], file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        # Without quotation marks, a carriage return would end the row for its reader.
        quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in (list(lines[0]), *(list(line.values()) for line in lines)):
            cells = [json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row]
            breaks = any(isinstance(cell, str) and "\r" in cell for cell in cells)
            (quoted if breaks else writer).writerow(cells)


def _write_json_lines(lines: list[dict[str, Any]], file: Path) -> None:
    file.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")


def _write_parquet(lines: list[dict[str, Any]], file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        table = pyarrow.Table.from_pylist(lines)
    except pyarrow.ArrowException as error:
        raise RequestError(
            f"--out: a column holds values of several types ({first_line(error)}): write a .csv or .jsonl file."
        ) from error
    parquet.write_table(table, file)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}


def predict_file(predictor: Predictor, file: str, id_column: str | None = None) -> FilePredictions:
    """Predicts every row of a file, and scores the answers where it has the task's label column.

    Args:
        predictor: The run's model.
        file: A table in one of `petl_bench.tasks.table_files.FORMATS`, or a .txt file with one row a line.
        id_column: The column that names the rows; None: they are numbered from 1.

    Returns:
        The predictions in the order of the rows, with the scores.

    Raises:
        RequestError: If the file cannot be read, or a label is none of the task's.
    """
    task = predictor.task
    columns = [*columns_of_texts(task), task.label_column, *([] if id_column is None else [id_column])]
    if task.type != "tagging" and file.lower().removesuffix(".gz").endswith(".txt"):
        table = read_table(
            *(file, "--file", columns),
            lambda text, source: one_a_line(
                text, source, task.text_columns, "predictions for these rows are meaningless"
            ),
        )
    else:
        table = read_file(task, file, "--file", columns)
    # Without their labels, so that no row is left out.
    unlabelled = {name: cells for name, cells in table.columns.items() if name != task.label_column}
    rows = rows_of_table(replace(table, columns=unlabelled), task, predictor.labels)
    ids = range(1, len(rows) + 1) if id_column is None else table.column(id_column, f"--id-column={id_column}")
    predictions, answers = predictor.answer(rows)
    scores: dict[str, float] = {}
    scored: list[int] = []
    gold = table.columns.get(task.label_column)
    if gold is not None:
        scored, references = _references(table, predictor)
        if scored:
            scores = compute_metrics(list(task.metrics), answers[scored], references)
            if known := _num_trained_on(predictor, rows.take(np.asarray(scored))):
                _log.warning(
                    "%d of the %d scored rows have the texts of rows that the run was trained on, so the scores say "
                    "little of new rows",
                    *(known, len(scored)),
                )
    texts = dict(zip(task.text_columns, rows.texts, strict=True))
    return FilePredictions(predictor, _plain(list(ids)), texts, gold and _plain(gold), predictions, scores, len(scored))


def _plain(cell: Any) -> Any:
    """A cell as every format can hold it: text, a number, nothing, or lists and objects of these."""
    if isinstance(cell, list | tuple):
        return [_plain(one) for one in cell]
    if isinstance(cell, dict):
        return {name: _plain(value) for name, value in cell.items()}
    if is_missing(cell):
        return None
    if isinstance(cell, bool | int | float):
        return cell
    if isinstance(cell, date | time):
        return cell.isoformat()
    # What is no UTF-8 is written as escape sequences.
    content = cell if isinstance(cell, bytes) else str(cell).encode(errors="backslashreplace")
    return content.decode(errors="backslashreplace")


def _num_trained_on(predictor: Predictor, rows: Rows) -> int:
    """How many rows have the texts of rows that the run was trained on; 0 where those are not at hand."""
    if predictor.task.source == "hub":
        return 0
    try:
        trained_on = load_task(predictor.task, predictor.config.data_root).train
    except (RequestError, RunError):
        return 0
    known = set(zip(*trained_on.texts, strict=True))
    return sum(texts in known for texts in zip(*rows.texts, strict=True))


def one_a_line(text: str, source: str, columns: list[str], consequence: str) -> Table:
    """The rows of a plain text, whose lines end in LF, CR LF or CR alone; the texts of a pair are separated by a tab.

    Args:
        text: The content of the file.
        source: What it is called in messages.
        columns: The names of the texts of a row.
        consequence: What the log says of lines without words.

    Raises:
        RequestError: If a line does not have the number of texts that the task takes.
    """
    lines = [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
    if empty := [f"line {number}" for number, line in enumerate(lines, start=1) if not line.strip()]:
        _log.warning("%s: no words in %s: %s", source, listed(empty), consequence)
    rows = [line.split("\t") if len(columns) > 1 else [line] for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise RequestError(
                f"{source}, line {number}: the number of texts is {len(row)}, but the task takes {len(columns)}, "
                "separated by tabs."
            )
    cells = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    return Table(source, list(columns), cells, list(range(1, len(rows) + 1)))


def _is_unlabelled(cell: Any, marks: set[str], place: str, task: TaskConfig) -> bool:
    """Whether a row's cell holds no label: by its type, or an empty text, or a mark that is no label of the task."""
    if is_missing(cell) or (isinstance(cell, str | bytes) and not cell.strip()):
        return True
    return bool(marks) and label_name(cell, place, task.label_column) in marks


def _references(table: Table, predictor: Predictor) -> tuple[list[int], np.ndarray]:
    """The positions of the rows that have one of the run's labels, and these labels as the metrics expect them."""
    task, all_labels = predictor.task, find_labels(predictor.task)
    positions, cells = list(range(table.num_rows)), table.columns[task.label_column]
    if task.type in ("classification", "regression"):
        marks = {*task.unlabelled, str(UNLABELLED)} - set(all_labels or ()) if task.type == "classification" else set()
        positions = [row for row in positions if not _is_unlabelled(cells[row], marks, table.place(row), task)]
    if not positions:
        return [], np.empty(0)
    try:
        rows = rows_of_table(table.take(positions), replace(task, unlabelled=[]), all_labels)
    except RequestError as error:
        raise RequestError(
            f"{error} Correct the label, or rename the column {task.label_column!r} to predict without scores."
        ) from error
    assert rows.labels is not None
    labels = all_labels or []
    if task.type == "tagging":
        names = entity_tags(labels)
        return positions, names_by_row([names[tag] for tag in of_row] for of_row in rows.labels)
    if task.type == "multilabel":
        return positions, names_by_row([labels[index] for index in np.flatnonzero(of_row)] for of_row in rows.labels)
    if (known := known_classes(task, all_labels)) is None:
        return positions, rows.labels
    # Rows of the classes that were left out as out of distribution have no right answer.
    is_known = np.isin(rows.labels, known)
    return np.asarray(positions)[is_known].tolist(), np.searchsorted(known, rows.labels[is_known])
