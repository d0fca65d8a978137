"""A model's logits and scores on a task's rows, what a run reports while it trains, and what is measured at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from scipy.special import expit
from torch import nn
from tqdm import tqdm

from petl_bench.config import RunConfig
from petl_bench.errors import DivergedError, first_line
from petl_bench.methods.peft import merged
from petl_bench.records.predictions import Predictions, names_by_row
from petl_bench.records.schema import HistoryEntry, Inference, Record, RunProtocol, Scores
from petl_bench.reports.fields import shown_score
from petl_bench.run.describe import describe_inference
from petl_bench.tasks.load import Task
from petl_bench.tasks.metrics import OUTSIDE, compute_metrics, entity_tags
from petl_bench.trackers import Tracker, history_point
from petl_bench.training.batches import BatchSource, TokenRows, sorted_batches
from petl_bench.training.checkpoint import Progress, load_trainable_weights, trainable_weights
from petl_bench.training.loop import Callback

if TYPE_CHECKING:
    from accelerate import Accelerator

    from petl_bench.measure.run_costs import PeakMemory

_log = logging.getLogger(__name__)

# Repeats of the inference measurement take at most this share of the training's time.
_INFERENCE_SHARE = 0.03

T = TypeVar("T")

# Candidates for the threshold of a multi-label task: 0.05, 0.1, ..., 0.95.
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def predict_logits(
    model: torch.nn.Module, source: BatchSource, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """Computes the model's logits.

    Args:
        model: The model.
        source: Batches of the rows.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.

    Returns:
        Shape (rows, classes), or (words, tags) for rows of words, in order; see `predict_outputs`.
    """
    return predict_outputs(model, source, batch_size, accelerator, lambda outputs: outputs.logits)


def predict_outputs(
    model: torch.nn.Module,
    source: BatchSource,
    batch_size: int,
    accelerator: Accelerator,
    values: Callable[[Any], torch.Tensor],
) -> np.ndarray:
    """Computes the model's outputs for every row, or for every word of rows of words, in order.

    The batches are distributed over the processes; every process returns all rows.

    Args:
        model: The model, unwrapped; its mode is not changed.
        source: Batches of the rows.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.
        values: Selects the wanted values from a batch's outputs, shape (rows, outputs).

    Returns:
        float32, shape (rows, outputs) or (words, outputs); zeros for a word that the model does not see.

    Raises:
        DivergedError: If an output is not finite.
    """
    batches = sorted_batches(source.rows.lengths, batch_size)
    own_batches = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    outputs_by_batch: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), accelerator.autocast():
        for indices in tqdm(own_batches, desc="evaluating", leave=False, delay=2, disable=None):
            outputs = source.forward(model, source.batch(indices))
            outputs_by_batch.append(_read_outputs(values(outputs).float().cpu().numpy(), source.rows, indices))
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        outputs_by_batch = gather_object(outputs_by_batch)
    read = source.rows.read_tokens
    shape = (len(source.rows) if read is None else len(read[0]), outputs_by_batch[0][1].shape[1])
    logits = np.zeros(shape, dtype=np.float32)
    for indices, of_batch in outputs_by_batch:
        logits[indices] = of_batch
    if not np.isfinite(logits).all():
        raise DivergedError(
            "The model's outputs are not finite: lower train.learning_rate or use train.precision=fp32."
        )
    return logits


def _read_outputs(outputs: np.ndarray, rows: TokenRows, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of a batch that are used: those of its rows, or of the tokens that stand for its words.

    Args:
        outputs: Shape (batch, outputs), or (batch, tokens, outputs).
        rows: All rows.
        indices: The rows of the batch.

    Returns:
        The positions of the outputs among those of all rows or words, and the outputs, shape (positions, outputs).
    """
    if rows.read_tokens is None:
        return indices, outputs
    tokens, offsets = rows.read_tokens
    words = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in indices])
    places = np.repeat(np.arange(len(indices)), offsets[indices + 1] - offsets[indices])
    is_seen = tokens[words] >= 0
    words, places = words[is_seen], places[is_seen]
    return words, outputs[places, tokens[words] - rows.offsets[indices[places]]]


def word_tags(outputs: np.ndarray, read: tuple[np.ndarray, np.ndarray], labels: list[str]) -> np.ndarray:
    """The predicted tags of each row, as entity readers expect them; O for a word that the model does not see.

    Args:
        outputs: One row per word, shape (words, tags).
        read: The token of each word and where the words of each row begin, as in `TokenRows.read_tokens`.
        labels: The names of the tags.
    """
    tokens, offsets = read
    tags = np.where(tokens >= 0, outputs.argmax(axis=1), labels.index(OUTSIDE))
    names = entity_tags(labels)
    return names_by_row([names[tag] for tag in of_row] for of_row in np.split(tags, offsets[1:-1]))


def label_names(outputs: np.ndarray, labels: list[str], threshold: float) -> np.ndarray:
    """The labels that multi-label outputs, shape (rows, labels), give to each row."""
    is_given = expit(outputs) >= threshold
    return names_by_row([labels[index] for index in np.flatnonzero(of_row)] for of_row in is_given)


@dataclass(frozen=True)
class _Reported:
    """The results of some weights: scores, outputs by split, and the threshold of a multi-label task."""

    scores: dict[str, float]
    outputs: dict[str, np.ndarray]
    threshold: float


class Evaluator(Callback):
    """Scores one model on the selection split while it trains, and on all that is reported at the end.

    Args:
        model: The adapted model, unwrapped: processes may have unequal numbers of batches, and the forward pass of
            DistributedDataParallel waits for all of them.
        task: Names the metrics.
        sources: Batches by split: `selection`, `report`, and the task's extra splits by their names.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.
    """

    def __init__(
        self, model: nn.Module, task: Task, sources: dict[str, BatchSource], batch_size: int, accelerator: Accelerator
    ) -> None:
        self.model, self.task, self.sources = model, task, sources
        self.batch_size, self.accelerator = batch_size, accelerator
        # Multi-label: the probability from which a label is given. If it is tuned, then on the selection split.
        self._threshold = task.settings.threshold or 0.5
        # Outputs on the selection split of the last and of the best weights; None after an interruption before which
        # they were computed.
        self._last_outputs: np.ndarray | None = None
        self._best_outputs: np.ndarray | None = None

    @property
    def threshold(self) -> float | None:
        """For a multi-label task, the probability from which the present weights assign a label."""
        return self._threshold if self.task.settings.type == "multilabel" else None

    def selection_scores(self) -> dict[str, float]:
        """Returns the task's metrics on the selection split."""
        self._last_outputs = self._predict("selection")
        if self._chooses_threshold:
            self._threshold = self._best_threshold(self._last_outputs)
        return self._scores("selection", self._last_outputs, self.task.settings.metrics)

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Keeps the outputs of the best weights, so that they need not be computed again at the end."""
        if is_best:
            self._best_outputs = self._last_outputs

    def final_scores(self, progress: Progress, selection: str) -> tuple[Scores, dict[str, Predictions]]:
        """Scores the best and the last weights on all that is reported.

        Args:
            progress: What the training did.
            selection: `best` or `last`: the weights that the model has afterwards.

        Returns:
            The scores, and the predictions of the selected weights by split: `report`, the extra splits, and
            `selection` if these are other rows than those reported on.
        """
        task = self.task
        best, last = progress.history[progress.best], progress.history[-1]
        selected = of_last = self._report(last.scores, self._last_outputs)
        best_scores, selection_outputs = of_last.scores, self._last_outputs
        if best is not last:
            last_weights = trainable_weights(self.model)
            load_trainable_weights(self.model, progress.best_weights)
            of_best = self._report(best.scores, self._best_outputs)
            best_scores = of_best.scores
            if selection == "last":
                load_trainable_weights(self.model, last_weights)
            else:
                selected, selection_outputs = of_best, self._best_outputs
        if selection_outputs is None:
            selection_outputs = self._predict("selection")
        self._threshold = selected.threshold
        outputs = {"report" if task.reports_on_selection else "selection": selection_outputs} | selected.outputs
        scores = Scores(best=best_scores, last=of_last.scores, best_epoch=best.epoch)
        return scores, {split: self._predictions(split, values) for split, values in outputs.items()}

    def _report(self, selection_scores: dict[str, float], selection_outputs: np.ndarray | None) -> _Reported:
        """Scores the report split, unless it is the selection split, and the extra splits under their names.

        Args:
            selection_scores: The scores of the present weights on the selection split.
            selection_outputs: Their outputs on it; None where they are not known.
        """
        task, outputs = self.task, {}
        if self._chooses_threshold:
            self._threshold = self._best_threshold(
                self._predict("selection") if selection_outputs is None else selection_outputs
            )
        scores = dict(selection_scores)
        if not task.reports_on_selection:
            outputs["report"] = self._predict("report")
            scores = self._scores("report", outputs["report"], task.settings.metrics)
        for name, extra in task.extra.items():
            outputs[name] = self._predict(name)
            extra_scores = self._scores(name, outputs[name], extra.metrics)
            scores |= {f"{name}_{metric}": value for metric, value in extra_scores.items()}
        return _Reported(scores, outputs, self._threshold)

    def _predict(self, split: str) -> np.ndarray:
        return predict_logits(self.model, self.sources[split], self.batch_size, self.accelerator)

    @property
    def _chooses_threshold(self) -> bool:
        return self.task.settings.type == "multilabel" and self.task.settings.threshold is None

    def _best_threshold(self, outputs: np.ndarray) -> float:
        """The threshold with the best score on the selection split; if several are equal, the one nearest to 0.5."""
        task = self.task
        metric, given = task.settings.metric, task.given_names(task.selection)
        sign = 1 if task.higher_is_better else -1

        def score(threshold: float) -> float:
            names = label_names(outputs, task.labels or [], threshold)
            return sign * compute_metrics([metric], names, given)[metric]

        return max(sorted(THRESHOLDS, key=lambda threshold: abs(threshold - 0.5)), key=score)

    def _scores(self, split: str, outputs: np.ndarray, metrics: list[str]) -> dict[str, float]:
        predictions = self._predictions(split, outputs)
        return compute_metrics(metrics, predictions.predicted, predictions.labels)

    def _predictions(self, split: str, outputs: np.ndarray) -> Predictions:
        task = self.task
        rows = {"selection": task.selection, "report": task.report}.get(split) or task.extra[split].rows
        assert rows.labels is not None
        labels, read = task.labels or [], self.sources[split].rows.read_tokens
        if read is not None:
            no_outputs = np.empty((len(rows), 0), dtype=np.float32)
            return Predictions(rows.ids(), task.given_names(rows), no_outputs, word_tags(outputs, read, labels))
        if task.settings.type == "multilabel":
            names = label_names(outputs, labels, self._threshold)
            return Predictions(rows.ids(), task.given_names(rows), outputs, names)
        return Predictions(rows.ids(), rows.labels, outputs)


class ProgressReport(Callback):
    """Reports a training while it runs: evaluations to the log and the tracker, its warm-up to the memory peaks.

    Args:
        protocol: Names the splits and the metric of a tracker's curves.
        tracker: Mirrors the evaluations.
        peaks: Counts the first updates as a separate phase.
    """

    def __init__(self, protocol: RunProtocol, tracker: Tracker, peaks: PeakMemory) -> None:
        self._protocol, self._tracker, self._peaks = protocol, tracker, peaks

    def on_resume(self, progress: Progress) -> None:
        """Sends the evaluations before the interruption to the tracker again."""
        # Several processes receive the checkpoint through the memory of their devices.
        self._peaks.book("load")
        for entry in progress.history:
            self._tracker.log(entry.step, history_point(entry, self._protocol))

    def on_warm(self) -> None:
        """Ends the phase of the first updates."""
        self._peaks.book("first_updates")

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Logs the evaluation and sends it to the tracker."""
        self._tracker.log(entry.step, history_point(entry, self._protocol))
        scores = ", ".join(shown_score(name, value) for name, value in entry.scores.items())
        _log.info("epoch %.2f: train loss %.4f, %s", entry.epoch, entry.train_loss, scores)


def measure_finished(cfg: RunConfig, trained: nn.Module, task: Task, record: Record, accelerator: Accelerator) -> None:
    """Measures inference and scores the baselines, if requested.

    Args:
        cfg: The whole config.
        trained: The trained model, unwrapped; not usable afterwards.
        task: The rows.
        record: Receives the measurements.
        accelerator: Provides the run's precision.
    """
    assert record.time
    if cfg.measure.inference:
        seconds = _INFERENCE_SHARE * record.time.train_seconds
        record.inference = try_measuring(
            "inference could not be timed",
            "measure.inference",
            lambda: _time_inference(trained, cfg.task.max_length, seconds, accelerator),
        )
    if cfg.measure.baselines:
        scored = try_measuring(
            "the baselines could not be scored", "measure.baselines", lambda: _score_baselines(task, record)
        )
        record.baselines = scored or {}


def _time_inference(model: nn.Module, length: int, seconds: float, accelerator: Accelerator) -> Inference:
    """Times the trained model, its adapter merged if the method can; the model is not usable afterwards.

    Args:
        model: The trained model, unwrapped.
        length: Tokens of each row.
        seconds: The time limit of the repeats.
        accelerator: Provides the run's precision.
    """
    from petl_bench.measure.run_costs import time_forward

    plain, is_merged = merged(model)
    times = time_forward(plain, sequence_length=length, seconds=seconds, autocast=accelerator.autocast)
    return describe_inference(times, length, is_merged=is_merged)


def _score_baselines(task: Task, record: Record) -> dict[str, dict[str, float]]:
    """Scores the baselines on the rows to report on, and logs the scores and those that the run does not exceed."""
    from petl_bench.tasks.baselines import at_least_as_good, score_baselines

    baselines, metric = score_baselines(task), task.settings.metric
    shown = ", ".join(f"{name} {shown_score(metric, scores[metric])}" for name, scores in baselines.items())
    _log.info("baselines on %s: %s", task.report_split, shown)
    score = record.selected_scores.get(metric)
    if score is None or score == 1.0:
        return baselines
    if alike := at_least_as_good(baselines, metric, score, higher_is_better=task.higher_is_better):
        message = "the method scores no better than %s: more epochs, another rate or another method may help"
        _log.warning(message, " and ".join(alike))
    return baselines


def try_measuring(failure: str, setting: str, measure: Callable[[], T]) -> T | None:
    """Measures something outside the training: on an error it is missing in the record, but the run does not fail.

    Args:
        failure: What the log says on an error.
        setting: The setting that switches this measurement off.
        measure: Measures it. Methods of other packages may not support what it does with the model.

    Returns:
        What `measure` returned; None on an error.
    """
    try:
        return measure()
    except Exception as error:
        _log.warning("%s: %s (%s=false leaves it out)", failure, first_line(error), setting)
        _log.debug(failure, exc_info=error)
        return None
