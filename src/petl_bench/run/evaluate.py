"""Logits and scores of a model on a task's rows, and where each evaluation is reported while a run trains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.records.predictions import Predictions, predicted
from petl_bench.records.schema import HistoryEntry, Protocol, Scores
from petl_bench.tasks.load import Task
from petl_bench.tasks.metrics import compute_metrics
from petl_bench.trackers.tracker import Tracker, history_point
from petl_bench.training.batches import BatchSource, sorted_batches
from petl_bench.training.checkpoint import Progress, load_trainable_weights, trainable_weights
from petl_bench.training.loop import Callback

if TYPE_CHECKING:
    from accelerate import Accelerator

    from petl_bench.measure.device_memory import PeakMemory

_log = logging.getLogger(__name__)


def predict_logits(
    model: torch.nn.Module, source: BatchSource, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """Computes the model's logits for every row; see `predict_outputs`."""
    return predict_outputs(model, source, batch_size, accelerator, lambda outputs: outputs.logits)


def predict_outputs(
    model: torch.nn.Module,
    source: BatchSource,
    batch_size: int,
    accelerator: Accelerator,
    values: Callable[[Any], torch.Tensor],
) -> np.ndarray:
    """Computes the model's outputs for every row, in the rows' order.

    The batches are distributed over the processes; every process returns all rows.

    Args:
        model: The model, unwrapped; left in the mode that it is in.
        source: Batches of the rows.
        batch_size: Rows of a batch.
        accelerator: The process's device, precision and place among the processes.
        values: Takes from the outputs of a batch what is wanted of them, shape (rows, outputs).

    Returns:
        float32, shape (rows, outputs).

    Raises:
        DivergedError: If an output is not finite.
    """
    batches = sorted_batches(source.rows.lengths, batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    outputs_by_batch: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), accelerator.autocast():
        for indices in tqdm(mine, desc="evaluating", leave=False, delay=2, disable=None):
            outputs = source.forward(model, source.batch(indices))
            outputs_by_batch.append((indices, values(outputs).float().cpu().numpy()))
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        outputs_by_batch = gather_object(outputs_by_batch)
    logits = np.empty((len(source.rows), outputs_by_batch[0][1].shape[1]), dtype=np.float32)
    for indices, of_batch in outputs_by_batch:
        logits[indices] = of_batch
    if not np.isfinite(logits).all():
        raise DivergedError(
            "The model's outputs are not finite: lower train.learning_rate or use train.precision=fp32."
        )
    return logits


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
        self._model, self._task, self._sources = model, task, sources
        self._batch_size, self._accelerator = batch_size, accelerator
        # Outputs on the selection split of the last and of the best weights; None after an interruption before which
        # they were computed.
        self._last_outputs: np.ndarray | None = None
        self._best_outputs: np.ndarray | None = None

    def selection_scores(self) -> dict[str, float]:
        """Returns the task's metrics on the selection split."""
        self._last_outputs = self._predict("selection")
        return self._scores("selection", self._last_outputs, self._task.settings.metrics)

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
        task = self._task
        best, last = progress.history[progress.best], progress.history[-1]
        last_scores, outputs = self._report(last.scores)
        best_scores, selection_outputs = last_scores, self._last_outputs
        if best is not last:
            last_weights = trainable_weights(self._model)
            load_trainable_weights(self._model, progress.best_weights)
            best_scores, best_outputs = self._report(best.scores)
            if selection == "last":
                load_trainable_weights(self._model, last_weights)
            else:
                outputs, selection_outputs = best_outputs, self._best_outputs
        if selection_outputs is None:
            selection_outputs = self._predict("selection")
        outputs = {"report" if task.reports_on_selection else "selection": selection_outputs} | outputs
        scores = Scores(best=best_scores, last=last_scores, best_epoch=best.epoch)
        return scores, {split: self._predictions(split, found) for split, found in outputs.items()}

    def _report(self, selection_scores: dict[str, float]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Scores the report split, unless it is the selection split, and the extra splits under their names.

        Args:
            selection_scores: The scores of the present weights on the selection split.

        Returns:
            The scores, and the outputs on the splits that were scored here, shape (rows, outputs) each.
        """
        task, outputs = self._task, {}
        scores = dict(selection_scores)
        if not task.reports_on_selection:
            outputs["report"] = self._predict("report")
            scores = self._scores("report", outputs["report"], task.settings.metrics)
        for name, extra in task.extra.items():
            outputs[name] = self._predict(name)
            found = self._scores(name, outputs[name], extra.metrics)
            scores |= {f"{name}_{metric}": value for metric, value in found.items()}
        return scores, outputs

    def _predict(self, split: str) -> np.ndarray:
        return predict_logits(self._model, self._sources[split], self._batch_size, self._accelerator)

    def _scores(self, split: str, outputs: np.ndarray, metrics: list[str]) -> dict[str, float]:
        labels = self._sources[split].rows.labels
        assert labels is not None
        return compute_metrics(metrics, predicted(outputs), labels)

    def _predictions(self, split: str, outputs: np.ndarray) -> Predictions:
        task = self._task
        rows = {"selection": task.selection, "report": task.report}.get(split) or task.extra[split].rows
        assert rows.labels is not None
        return Predictions(rows.ids(), rows.labels, outputs)


class ProgressReport(Callback):
    """Reports a training while it runs: evaluations to the log and the tracker, its warm-up to the memory peaks.

    Args:
        protocol: Names the splits and the metric of a tracker's curves.
        tracker: Mirrors the evaluations.
        peaks: Counts the first updates as a phase of their own.
    """

    def __init__(self, protocol: Protocol, tracker: Tracker, peaks: PeakMemory) -> None:
        self._protocol, self._tracker, self._peaks = protocol, tracker, peaks

    def on_resume(self, progress: Progress) -> None:
        """Sends the evaluations before the interruption to the tracker again."""
        for entry in progress.history:
            self._tracker.log(entry.step, history_point(entry, self._protocol))

    def on_warm(self) -> None:
        """Ends the phase of the first updates."""
        self._peaks.book("first_updates")

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Logs the evaluation and sends it to the tracker."""
        self._tracker.log(entry.step, history_point(entry, self._protocol))
        scores = ", ".join(f"{name} {value:.4f}" for name, value in entry.scores.items())
        _log.info("epoch %.2f: train loss %.4f, %s", entry.epoch, entry.train_loss, scores)
