"""Logits and scores of a model on a task's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.records.schema import Scores
from petl_bench.tasks.load import Task
from petl_bench.tasks.metrics import compute_metrics
from petl_bench.training.batches import BatchSource, sorted_batches
from petl_bench.training.state import FitResult, load_trainable_state, trainable_state

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict_logits(
    model: torch.nn.Module, source: BatchSource, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """The model's outputs for every row, in the rows' order.

    Batches are shared out over the processes; every process returns all rows.

    Returns:
        float32, shape (rows, outputs).

    Raises:
        DivergedError: where an output is not finite.
    """
    batches = sorted_batches(source.rows.lengths, batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    was_training = model.training
    model.eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), accelerator.autocast():
        for indices in tqdm(mine, desc="evaluating", leave=False, delay=2, disable=None):
            outputs = source.forward(model, source.batch(indices))
            found.append((indices, outputs.logits.float().cpu().numpy()))
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    logits = np.empty((len(source.rows), found[0][1].shape[1]), dtype=np.float32)
    for indices, values in found:
        logits[indices] = values
    if not np.isfinite(logits).all():
        raise DivergedError(
            "The model's outputs are not finite: lower train.learning_rate or use train.precision=fp32."
        )
    return logits


def logits_to_predictions(logits: np.ndarray) -> np.ndarray:
    """Class indices, or the values themselves where there is one output; shape (rows,)."""
    return logits[:, 0].astype(np.float64) if logits.shape[1] == 1 else logits.argmax(axis=1)


class Evaluator:
    """Scores one model on the selection split while it trains, and on everything that is reported at the end.

    Args:
        model: The model, as prepared for its device.
        task: Names the metrics.
        feeds: By split: `train`, `selection`, `report`, and the task's extra ones by their names.
        batch_size: Rows a batch.
        accelerator: The process's place among devices and processes.
    """

    def __init__(
        self, model: nn.Module, task: Task, sources: dict[str, BatchSource], batch_size: int, accelerator: Accelerator
    ) -> None:
        self.model, self.task, self.sources = model, task, sources
        self.batch_size, self.accelerator = batch_size, accelerator

    def selection_scores(self) -> dict[str, float]:
        """The task's metrics on the selection split."""
        return self._scores("selection", self.task.settings.metrics)

    def final_scores(self, result: FitResult, selection: str) -> Scores:
        """Scores of the best and of the last weights; leaves the model with those that `selection` names."""
        plain = self.accelerator.unwrap_model(self.model)
        best, last_entry = result.history[result.best], result.history[-1]
        last = self._reported(last_entry.scores)
        if best is last_entry:
            return Scores(best=last, last=last, best_epoch=best.epoch)
        last_state = trainable_state(plain)
        load_trainable_state(plain, result.best_state)
        scores = Scores(best=self._reported(best.scores), last=last, best_epoch=best.epoch)
        if selection == "last":
            load_trainable_state(plain, last_state)
        return scores

    def _reported(self, selection_scores: dict[str, float]) -> dict[str, float]:
        """The report split's scores, with the extra rows' by name; what is known already is not computed again."""
        same_rows = self.task.report is self.task.selection
        scores = dict(selection_scores) if same_rows else self._scores("report", self.task.settings.metrics)
        for name, extra in self.task.extra.items():
            scores |= {f"{name}_{metric}": value for metric, value in self._scores(name, extra.metrics).items()}
        return scores

    def _scores(self, split: str, metrics: list[str]) -> dict[str, float]:
        source = self.sources[split]
        assert source.rows.labels is not None
        # Unwrapped: processes may have unequal numbers of batches, and DDP's forward waits for all of them.
        plain = self.accelerator.unwrap_model(self.model)
        logits = predict_logits(plain, source, self.batch_size, self.accelerator)
        return compute_metrics(metrics, logits_to_predictions(logits), source.rows.labels)
