"""Text in, labels and probabilities out, with the model of a finished run."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.backbones.layers import resolved_layers
from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import RunConfig, config_from_dict
from petl_bench.errors import RequestError
from petl_bench.model import load_trained
from petl_bench.records.schema import Record
from petl_bench.records.store import MODEL_FOLDER, RunFolder
from petl_bench.tasks.config import ExtraSplit
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import find_labels, read_subset
from petl_bench.tasks.rows import Rows, check_text, rows_from_table
from petl_bench.tasks.tables import read_table, split_files

if TYPE_CHECKING:
    from petl_bench.tasks.config import TaskConfig
    from petl_bench.training.batches import BatchSource


# What the GLUE server wants in place of label names.
_SUBMITTED_AS_NUMBERS = ("cola", "sst2", "mrpc", "qqp", "wnli")

_STDIN_CHUNK = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one row: a label with all probabilities, or a value.

    `ood_score` is larger for rows that are more in distribution, `in_distribution` whether it reaches the threshold.
    """

    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    ood_score: float | None = None
    in_distribution: bool | None = None


class Predictor:
    """A finished run's model, ready for texts.

    Args:
        run_dir: The run's folder.
        base: The folder of the pretrained backbone, if it has moved since the run; None: where it was.
        any_base: Whether to go on with another backbone than the one that the run was trained on.
        ood: The score that tells whether a row is in distribution, one of `OOD_SCORES`; None: that is not asked.

    Raises:
        RequestError: If it holds no finished run, or no weights, or the backbone is missing or another one, or the run
            was made without `task.ood` but a score is asked for.
    """

    def __init__(
        self, run_dir: str | Path, base: str | None = None, *, any_base: bool = False, ood: str | None = None
    ) -> None:
        folder = RunFolder(Path(run_dir))
        record = folder.finished()
        if record is None:
            raise RequestError(f"{run_dir} holds no finished run (result.json).")
        if ood is not None and record.ood is None:
            raise RequestError(f"--ood: {run_dir} was made without task.ood, which fits a threshold: see docs/ood.md.")
        import torch
        from accelerate.utils import set_seed

        from petl_bench.training.device import make_accelerator

        self.config: RunConfig = config_from_dict(record.config)
        self.task: TaskConfig = self.config.task
        self.labels = find_labels(self.task) if record.ood is None else record.ood.classes
        # On whatever device is here: a run of a GPU machine must be usable on another.
        precision = self.config.train.precision
        if precision == "fp16" and not torch.cuda.is_available():
            precision = "fp32"
        self._accelerator = make_accelerator(
            replace(self.config.train, device="auto", precision=precision, emulate_bf16=True)
        )
        backbone = self._open_backbone(record, folder.path, base, any_base=any_base)
        self._tokenizer = backbone.load_tokenizer()
        # A backbone with random weights is the one that was trained only under the same seed.
        set_seed(self.config.train.seed)
        self._model = load_trained(folder, backbone, self.labels).to(self._accelerator.device)
        self._ood = ood
        if ood is not None:
            from petl_bench.run.ood import Detector

            self._detector, self._threshold = Detector.load(folder.path), getattr(record.ood, ood).threshold

    def _open_backbone(self, record: Record, folder: Path, base: str | None, *, any_base: bool) -> Backbone:
        layers = resolved_layers(self.config.layers, record.layers)
        settings = self.config.backbone
        if (folder / MODEL_FOLDER).is_dir():
            # The run kept the whole model and its tokenizer, so it needs no other.
            return open_backbone(replace(settings, path=str(folder / MODEL_FOLDER), weights="pretrained"), layers)
        try:
            backbone = open_backbone(replace(settings, path=base or settings.path), layers)
        except RequestError as error:
            if settings.path is None and base is None:
                raise
            raise RequestError(
                f"{error} If the backbone of {folder} has moved, give its folder with --base."
            ) from error
        _check_base(record, backbone, folder, any_base=any_base)
        return backbone

    def predict(self, rows: Rows) -> list[Prediction]:
        """Predictions in the rows' order."""
        from petl_bench.run.evaluate import predict_logits
        from petl_bench.training.batches import BatchSource

        encoded = encode(rows, self._tokenizer, self.task.max_length, cached=False)
        source = BatchSource(encoded, self._accelerator.device)
        if self._ood is not None:
            return self._with_ood_scores(source)
        logits = predict_logits(self._model, source, self.config.train.eval_batch_size, self._accelerator)
        return self._predictions(logits)

    def _with_ood_scores(self, source: BatchSource) -> list[Prediction]:
        from petl_bench.run.ood import logits_and_vectors

        assert self._ood is not None
        batch_size = self.config.train.eval_batch_size
        logits, vectors = logits_and_vectors(self._model, source, batch_size, self._accelerator)
        scores = self._detector.scores(logits, vectors)[self._ood].tolist()
        return [
            replace(one, ood_score=score, in_distribution=score >= self._threshold)
            for one, score in zip(self._predictions(logits), scores, strict=True)
        ]

    def _predictions(self, logits: np.ndarray) -> list[Prediction]:
        if self.labels is None:
            return [Prediction(value=float(value)) for value in logits[:, 0]]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = shifted / shifted.sum(axis=1, keepdims=True)
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, map(float, row), strict=True)))
            for row in shares
        ]


def _check_base(record: Record, backbone: Backbone, folder: Path, *, any_base: bool) -> None:
    """Refuses, or logs, that the backbone has other files than the run was trained on; older records do not know."""
    then, now = record.base_files, backbone.file_hashes()
    if then is None or now is None or then == now:
        return
    changed = ", ".join(sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)))
    assert backbone.source
    message = f"The backbone in {backbone.source.folder} differs from the one that {folder} was trained on ({changed})"
    if not any_base:
        raise RequestError(f"{message}: give the folder of that one with --base, or use this one with --any-base.")
    _log.warning("%s, and is used all the same.", message)


def predict_texts(predictor: Predictor, texts: list[str], *, as_json: bool) -> Iterator[str]:
    """Predicts one example, given one text for each text column."""
    yield from _lines(predictor, {"--text": texts}, as_json=as_json, header=True)


def predict_file(predictor: Predictor, file: str, *, as_json: bool) -> Iterator[str]:
    """Predicts every row of a file; its labels, where it has any, are not looked at."""
    table = read_table(file, "--file", predictor.task.text_columns)
    rows = rows_from_table(table, predictor.task, predictor.labels)
    yield from _format(predictor, predictor.predict(rows), as_json=as_json, header=True)


def predict_stdin(predictor: Predictor, stream: Iterable[str], *, as_json: bool) -> Iterator[str]:
    """Predicts one example a line; the texts of a pair are separated by a tab.

    Args:
        predictor: The run's model.
        stream: Lines that end in LF or CR LF. What is no UTF-8 was decoded to surrogates.
        as_json: Whether to yield a JSON object a line.

    Raises:
        RequestError: If a line is no text, or holds another number of texts than the task takes.
    """
    header, chunk = True, {}
    try:
        for number, line in enumerate(stream, start=1):
            text, place = line.removesuffix("\n").removesuffix("\r"), f"line {number} of standard input"
            if "\r" in text:
                raise RequestError(f"{place} holds a carriage return inside: end each line with LF or CR LF.")
            chunk[place] = text.split("\t") if len(predictor.task.text_columns) > 1 else [text]
            if len(chunk) == _STDIN_CHUNK:
                yield from _lines(predictor, chunk, as_json=as_json, header=header)
                header, chunk = False, {}
    except OSError as error:
        raise RequestError(f"standard input cannot be read: {error.strerror}.") from error
    if chunk:
        yield from _lines(predictor, chunk, as_json=as_json, header=header)


def _lines(predictor: Predictor, examples: dict[str, list[str]], *, as_json: bool, header: bool) -> Iterator[str]:
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
    texts = tuple([example[i] for example in examples.values()] for i in range(len(columns)))
    rows = Rows(texts, None)
    yield from _format(predictor, predictor.predict(rows), as_json=as_json, header=header)


def _format(predictor: Predictor, predictions: list[Prediction], *, as_json: bool, header: bool) -> Iterator[str]:
    if as_json:
        for prediction in predictions:
            yield json.dumps({name: value for name, value in asdict(prediction).items() if value is not None})
        return
    with_scores = any(prediction.ood_score is not None for prediction in predictions)
    if header:
        names = ["in_distribution", "ood_score"] if with_scores else []
        names += ["label", *(f"p({label})" for label in predictor.labels)] if predictor.labels else ["value"]
        yield "\t".join(names)
    for prediction in predictions:
        cells = ["yes" if prediction.in_distribution else "no", f"{prediction.ood_score:.4f}"] if with_scores else []
        if prediction.probabilities is None:
            cells.append(f"{prediction.value:.4f}")
        else:
            cells += [str(prediction.label), *(f"{share:.4f}" for share in prediction.probabilities.values())]
        yield "\t".join(cells)


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
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["index", "prediction"])
            writer.writerows([index, _submitted(one, predictor)] for index, one in enumerate(predictions))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _submitted(prediction: Prediction, predictor: Predictor) -> Any:
    if prediction.value is not None:
        # STS-B's scale.
        return f"{min(max(prediction.value, 0.0), 5.0):.3f}"
    assert predictor.labels
    assert prediction.label is not None
    if predictor.task.name in _SUBMITTED_AS_NUMBERS:
        return predictor.labels.index(prediction.label)
    return prediction.label
