"""Text in, labels and probabilities or entities out, with the model of a finished run."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from petl_bench.config import RunConfig
from petl_bench.errors import RequestError, listed
from petl_bench.process import atomic_write
from petl_bench.records.predictions import predicted
from petl_bench.run.lifecycle import open_finished
from petl_bench.tasks import ExtraSplit
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import read_subset, rows_of_texts
from petl_bench.tasks.metrics import entity_places
from petl_bench.tasks.rows import Rows, check_text
from petl_bench.tasks.table_files import split_files
from petl_bench.tasks.tagging import TaggedRows

if TYPE_CHECKING:
    from petl_bench.tasks import TaskConfig
    from petl_bench.training.batches import BatchSource


# Tasks for which the GLUE server expects numbers instead of label names.
_SUBMITTED_AS_NUMBERS = ("cola", "sst2", "mrpc", "qqp", "wnli")

_STDIN_CHUNK = 64

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entity:
    """An entity: characters `start` to `end` of a row's text, without the one at `end`."""

    type: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of one row: a label or several with all probabilities, a value, or entities in its text.

    `ood_score` is larger for rows that are more in distribution, `in_distribution` whether it reaches the threshold.
    """

    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    labels: list[str] | None = None
    text: str | None = None
    entities: list[Entity] | None = None
    ood_score: float | None = None
    in_distribution: bool | None = None


class Predictor:
    """A finished run's model, ready for texts.

    Args:
        run_dir: The run's folder.
        base: The folder of the pretrained backbone, if it has moved since the run; None: where it was.
        any_base: Whether to accept a backbone other than the one that the run was trained on.
        ood: The score that tells whether a row is in distribution, one of `OOD_SCORES`; None: not computed.

    Raises:
        RequestError: If it has no finished run, or no weights, or the backbone is missing or another one, or the run
            was made without `task.ood` but a score is asked for.
    """

    def __init__(
        self, run_dir: str | Path, base: str | None = None, *, any_base: bool = False, ood: str | None = None
    ) -> None:
        run = open_finished(run_dir, base, any_base=any_base)
        record = run.record
        if ood is not None and record.ood is None:
            raise RequestError(f"--ood: {run_dir} was made without task.ood, which fits a threshold: see docs/ood.md.")
        import torch

        from petl_bench.training.device import make_accelerator

        self.config: RunConfig = run.config
        self.task: TaskConfig = self.config.task
        self.labels = run.labels
        self._threshold = record.threshold or 0.5
        # Uses the available device: a run made on a GPU machine must be usable on another machine.
        precision = self.config.train.precision
        if precision == "fp16" and not torch.cuda.is_available():
            precision = "fp32"
        self._accelerator = make_accelerator(
            replace(self.config.train, device="auto", precision=precision, emulate_bf16=True)
        )
        self._tokenizer = run.backbone.load_tokenizer()
        self._model = run.load_model().to(self._accelerator.device)
        self.ood = ood
        if ood is not None:
            from petl_bench.run.ood_detection import Detector

            self._detector, self._ood_threshold = Detector.load(run.folder.path), getattr(record.ood, ood).threshold

    def predict(self, rows: Rows) -> list[Prediction]:
        """Predictions in the rows' order."""
        return self.answer(rows)[0]

    def answer(self, rows: Rows) -> tuple[list[Prediction], np.ndarray]:
        """Predictions in the rows' order, and the same as metrics read them: class indices, values, or names."""
        from petl_bench.run.evaluate import label_names, predict_logits, word_tags
        from petl_bench.training.batches import BatchSource

        encoded = encode(rows, self._tokenizer, self.task.max_length, cached=False)
        source = BatchSource(encoded, self._accelerator.device)
        if self.ood is not None:
            return self._with_ood_scores(source)
        logits = predict_logits(self._model, source, self.config.train.eval_batch_size, self._accelerator)
        if isinstance(rows, TaggedRows):
            assert encoded.read_tokens
            assert self.labels
            if cut := int((encoded.read_tokens[0] < 0).sum()):
                _log.warning(
                    "%d words are outside of entities, as task.max_length=%d cuts them or the tokenizer makes no token "
                    "of them",
                    *(cut, self.task.max_length),
                )
            tags = word_tags(logits, encoded.read_tokens, self.labels)
            return _entities(rows, tags), tags
        if self.task.type == "multilabel":
            assert self.labels
            names = label_names(logits, self.labels, self._threshold)
            shares = expit(logits.astype(np.float64))
            return [
                Prediction(labels=list(given), probabilities=dict(zip(self.labels, map(float, row), strict=True)))
                for given, row in zip(names, shares, strict=True)
            ], names
        return self._predictions(logits), predicted(logits)

    def _with_ood_scores(self, source: BatchSource) -> tuple[list[Prediction], np.ndarray]:
        from petl_bench.run.ood_detection import logits_and_vectors

        assert self.ood is not None
        batch_size = self.config.train.eval_batch_size
        logits, vectors = logits_and_vectors(self._model, source, batch_size, self._accelerator)
        scores = self._detector.scores(logits, vectors)[self.ood].tolist()
        return [
            replace(prediction, ood_score=score, in_distribution=score >= self._ood_threshold)
            for prediction, score in zip(self._predictions(logits), scores, strict=True)
        ], predicted(logits)

    def _predictions(self, logits: np.ndarray) -> list[Prediction]:
        """What the logits of each row say where a row has one label or value."""
        if self.labels is None:
            return [Prediction(value=float(value)) for value in logits[:, 0]]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = shifted / shifted.sum(axis=1, keepdims=True)
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, map(float, row), strict=True)))
            for row in shares
        ]


def _entities(rows: TaggedRows, tags: np.ndarray) -> list[Prediction]:
    predictions = []
    for text, spans, of_row in zip(rows.texts[0], rows.spans, tags, strict=True):
        places = entity_places(of_row, spans)
        predictions.append(Prediction(text=text, entities=[Entity(kind, a, b, text[a:b]) for kind, a, b in places]))
    return predictions


def predict_texts(predictor: Predictor, texts: list[str], *, as_json: bool) -> Iterator[str]:
    """Predicts one example, given one text for each text column."""
    yield from _lines(predictor, {"--text": texts}, as_json=as_json)


def standard_input() -> Iterable[str]:
    """Standard input as lines of UTF-8; invalid bytes become surrogates, so that errors can name their line."""
    if sys.stdin is None:
        raise RequestError("Standard input is closed: give the texts there, or with --text or --file.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    return sys.stdin


def predict_stdin(predictor: Predictor, stream: Iterable[str], *, as_json: bool) -> Iterator[str]:
    """Predicts one example a line; the texts of a pair are separated by a tab.

    Args:
        predictor: The run's model.
        stream: Lines that end in LF or CR LF. Invalid UTF-8 was decoded to surrogates.
        as_json: Whether to yield one JSON object per line.

    Raises:
        RequestError: If a line is not text, or does not have the number of texts that the task takes.
    """
    first, chunk = 1, {}
    try:
        for number, line in enumerate(stream, start=1):
            text, place = line.removesuffix("\n").removesuffix("\r"), f"line {number} of standard input"
            if "\r" in text:
                raise RequestError(f"{place} holds a carriage return inside: end each line with LF or CR LF.")
            chunk[place] = text.split("\t") if len(predictor.task.text_columns) > 1 else [text]
            if len(chunk) == _STDIN_CHUNK:
                yield from _lines(predictor, chunk, as_json=as_json, first=first)
                first, chunk = number + 1, {}
    except OSError as error:
        raise RequestError(f"standard input cannot be read: {error.strerror}.") from error
    if chunk:
        yield from _lines(predictor, chunk, as_json=as_json, first=first)
    elif first == 1:
        _log.warning("standard input held no text: nothing is predicted")


def _lines(predictor: Predictor, examples: dict[str, list[str]], *, as_json: bool, first: int = 1) -> Iterator[str]:
    """Predicts examples, each of which is named by its place."""
    columns = predictor.task.text_columns
    for place, example in examples.items():
        if len(example) != len(columns):
            raise RequestError(
                f"{place}: the number of texts is {len(example)}, but task={predictor.task.name} takes {len(columns)}: "
                f"{', '.join(columns)}."
            )
        for text in example:
            check_text(text, place)
    if empty := [place for place, example in examples.items() if not any(text.strip() for text in example)]:
        _log.warning("no words in %s: predictions for these rows are meaningless", listed(empty))
    texts = tuple([example[i] for example in examples.values()] for i in range(len(columns)))
    rows = rows_of_texts(texts, predictor.task)
    yield from as_lines(predictor, predictor.predict(rows), as_json=as_json, first=first)


def as_lines(predictor: Predictor, predictions: list[Prediction], *, as_json: bool, first: int = 1) -> Iterator[str]:
    """Writes predictions as lines.

    Args:
        predictor: The run's model, which knows the labels.
        predictions: The answers, in the order of the rows.
        as_json: Whether to write one JSON object per line instead of columns separated by tabs.
        first: Number of the first of these rows; a header is written before row 1.

    Yields:
        One line per row, or one per entity.
    """
    if as_json:
        for prediction in predictions:
            yield json.dumps({name: value for name, value in asdict(prediction).items() if value is not None})
        return
    if first == 1:
        yield _by_tabs(_header(predictor))
    for number, prediction in enumerate(predictions, start=first):
        if prediction.entities is not None:
            for entity in prediction.entities:
                span = [str(entity.start), str(entity.end)]
                yield _by_tabs([str(number), entity.type, *span, " ".join(entity.text.split())])
        elif prediction.probabilities is None:
            yield f"{prediction.value:.4f}"
        else:
            cells = []
            if prediction.ood_score is not None:
                cells = ["yes" if prediction.in_distribution else "no", f"{prediction.ood_score:.4f}"]
            names = [str(prediction.label)] if prediction.labels is None else prediction.labels
            cells.append(predictor.task.label_separator.join(names))
            yield _by_tabs([*cells, *(f"{share:.4f}" for share in prediction.probabilities.values())])


def _by_tabs(cells: list[str]) -> str:
    """Cells separated by tabs; a space takes the place of a character that would break the row, or control a screen."""
    return "\t".join(_CONTROL.sub(" ", cell) for cell in cells)


def _header(predictor: Predictor) -> list[str]:
    if predictor.task.type == "tagging":
        return ["row", "type", "start", "end", "text"]
    if predictor.labels is None:
        return ["value"]
    score_columns = [] if predictor.ood is None else ["in_distribution", "ood_score"]
    label_column = "labels" if predictor.task.type == "multilabel" else "label"
    return [*score_columns, label_column, *(f"p({label})" for label in predictor.labels)]


def submit(predictor: Predictor, out_dir: str, data_root: str | None) -> Iterator[Path]:
    """Writes the GLUE server's files for a run's task: `<NAME>.tsv` with `index` and `prediction`.

    An MNLI run also predicts the mismatched rows and the diagnostics.

    Raises:
        RequestError: If the task is none of GLUE's, or test rows are missing.
    """
    task = predictor.task
    if task.submission is None or task.subset is None:
        raise RequestError(f"task={task.name} has no submission format: --submit is for the GLUE tasks.")
    root = data_root or predictor.config.data_root
    main = ExtraSplit(subset=task.subset, split=task.test_split, submission=task.submission)
    for part in (main, *task.also_submit.values()):
        if root is not None and part is not main and not split_files(Path(root).expanduser(), part.subset, part.split):
            continue
        rows = read_subset(task, part.subset, part.split, predictor.labels, root)
        file = Path(out_dir) / f"{part.submission}.tsv"
        _write_submission(file, rows, predictor.predict(rows), predictor)
        yield file


def _write_submission(file: Path, rows: Rows, predictions: list[Prediction], predictor: Predictor) -> None:
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "prediction"])
        writer.writerows([index, _submitted(prediction, predictor)] for index, prediction in enumerate(predictions))


def _submitted(prediction: Prediction, predictor: Predictor) -> Any:
    if prediction.value is not None:
        # STS-B's scale.
        return f"{min(max(prediction.value, 0.0), 5.0):.3f}"
    assert predictor.labels
    assert prediction.label is not None
    if predictor.task.name in _SUBMITTED_AS_NUMBERS:
        return predictor.labels.index(prediction.label)
    return prediction.label
