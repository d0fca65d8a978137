"""The training loop: epochs of updates, evaluations between them, the best weights kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.records.schema import HistoryEntry
from petl_bench.training.batches import BatchSource, epoch_batches
from petl_bench.training.config import TrainConfig
from petl_bench.training.device import fast_dropout
from petl_bench.training.state import (
    FitResult,
    MethodState,
    NoMethodState,
    WarmUp,
    put_state,
    take_state,
    trainable_state,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from petl_bench.training.checkpoint import Checkpoints

# Updates between looks at the loss: each look waits for the device.
CHECK_EVERY = 20
# Updates that warm up (allocator, kernels, caches); rates leave them out where there are more.
WARM_UP = 3

_log = logging.getLogger(__name__)


def steps_per_epoch(num_rows: int, train: TrainConfig) -> int:
    """Updates of one epoch."""
    return math.ceil(num_rows / train.batch_size)


def num_training_steps(num_rows: int, train: TrainConfig) -> int:
    """Updates of a whole training."""
    return train.max_steps or train.epochs * steps_per_epoch(num_rows, train)


class Fitter:
    """Trains a model; `fit` is the whole of it.

    Args:
        evaluate: Scores the model on the selection split.
        metric, higher_is_better: Which of these scores says what is best.
        on_evaluation: Takes each evaluation, and whether it is the best so far.
        on_resume: Takes the evaluations of a training that goes on from a checkpoint.
        after_update: Takes the number of the update, from 0, while the gradients are there.
        on_warm: Called once the first updates are done.
        checkpoints: Where the training may go on from, and what it keeps for that; None: neither.
        method_state: What the method keeps beside its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        source: BatchSource,
        train: TrainConfig,
        accelerator: Accelerator,
        evaluate: Callable[[], dict[str, float]],
        *,
        metric: str,
        higher_is_better: bool,
        on_evaluation: Callable[[HistoryEntry, bool], None] = lambda _evaluation, _is_best: None,
        after_update: Callable[[int], None] | None = None,
        on_warm: Callable[[], None] = lambda: None,
        on_resume: Callable[[list[HistoryEntry]], None] = lambda _history: None,
        checkpoints: Checkpoints | None = None,
        method_state: MethodState | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.source, self.train, self.accelerator = source, train, accelerator
        self.evaluate, self.on_evaluation, self.after_update = evaluate, on_evaluation, after_update
        self.on_warm, self.on_resume = on_warm, on_resume
        self.checkpoints, self.method_state = checkpoints, method_state or NoMethodState()
        self.metric, self.sign = metric, 1.0 if higher_is_better else -1.0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.steps_per_epoch = steps_per_epoch(len(source.rows), train)
        self.total_steps = num_training_steps(len(source.rows), train)
        self.result = FitResult()
        # Since the last evaluation; looked at up to `_checked`.
        self.losses: list[torch.Tensor] = []
        self._checked = 0

    def fit(self) -> FitResult:
        """Trains to the end or until early stopping.

        Raises:
            DivergedError: where the loss or an output is not finite.
        """
        self.model.train()
        self._resume()
        first = self.result.num_steps + 1
        started = time.perf_counter()
        bar = tqdm(
            total=self.total_steps, initial=first - 1, desc="training", unit="step", delay=2, disable=None, leave=False
        )
        with bar, fast_dropout(self.accelerator.device):
            for step, indices in enumerate(self._batches(first - 1), start=first):
                # Before an update, so that what went before, an evaluation included, is done with.
                if self.checkpoints is not None and self.checkpoints.due:
                    started = self._keep_checkpoint(started)
                self._update(indices)
                self.result.num_steps = step
                bar.update()
                if step % CHECK_EVERY == 0:
                    self._check_losses()
                if step == WARM_UP < self.total_steps:
                    self._note_warm_up(started)
                if self._evaluation_due(step):
                    self._synchronize()
                    self.result.train_seconds += time.perf_counter() - started
                    stop = self._evaluate(step)
                    started = time.perf_counter()
                    if stop:
                        break
        self._synchronize()
        return self.result

    def _resume(self) -> None:
        state = None if self.checkpoints is None else self.checkpoints.read()
        if state is not None:
            put_state(self, state)
            self.result.resumed_at.append(self.result.num_steps)
            self.on_resume(self.result.history)
            _log.info("goes on after update %d of %d", self.result.num_steps, self.total_steps)

    def _keep_checkpoint(self, started: float) -> float:
        """Writes a checkpoint; the training's time goes on from the returned instant."""
        assert self.checkpoints is not None
        self._check_losses()
        self._synchronize()
        self.result.train_seconds += time.perf_counter() - started
        self.checkpoints.write(self.result.num_steps, take_state(self))
        return time.perf_counter()

    def _note_warm_up(self, started: float) -> None:
        self._synchronize()
        result = self.result
        seconds = result.train_seconds + time.perf_counter() - started
        result.warm_up = WarmUp(
            result.num_steps, result.num_examples, result.num_tokens, result.num_padded_tokens, seconds
        )
        self.on_warm()

    def _batches(self, done: int) -> Iterator[np.ndarray]:
        """The batches after the first `done` ones."""
        train = self.train
        for step in range(done, self.total_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0 or step == done:
                batches = epoch_batches(self.source.rows.lengths, train.batch_size, train.batching, train.seed, epoch)
            yield batches[position]

    def _update(self, indices: np.ndarray) -> None:
        """One optimizer step over a batch, split over processes and passes so that each row weighs the same."""
        passes = np.array_split(indices, min(self.train.accumulation, len(indices)))
        losses = []
        for number, part in enumerate(passes, start=1):
            context = self.accelerator.no_sync(self.model) if number < len(passes) else nullcontext()
            with context:
                losses.append(self._forward_backward(part, len(indices)))
        self.accelerator.clip_grad_norm_(self.parameters, self.train.max_grad_norm)
        self.optimizer.step()
        if self.after_update is not None:
            self.after_update(self.result.num_steps)
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(torch.stack(losses).sum())
        self.result.num_examples += len(indices)

    def _forward_backward(self, indices: np.ndarray, batch_rows: int) -> torch.Tensor:
        """Adds the gradient of these rows' share of the batch's mean loss; returns that share of the loss."""
        world = self.accelerator.num_processes
        mine = indices[self.accelerator.process_index :: world]
        # A process without a row still takes part in the gradient exchange, with weight 0.
        batch = self.source.batch(mine if len(mine) else indices[:1])
        with self.accelerator.autocast():
            loss = self.source.forward(self.model, batch, batch.labels).loss
        share = loss * (len(mine) / batch_rows)
        # Gradients are averaged over the processes; the factor makes that a sum.
        self.accelerator.backward(share * world)
        if len(mine):
            self.result.num_tokens += batch.num_tokens
            self.result.num_padded_tokens += batch.num_padded_tokens
        return share.detach()

    def _evaluation_due(self, step: int) -> bool:
        return step % (self.train.evaluate_every or self.steps_per_epoch) == 0 or step == self.total_steps

    def _evaluate(self, step: int) -> bool:
        """Scores the selection split, keeps the weights where they are the best so far; True to stop early."""
        self._check_losses()
        started = time.perf_counter()
        scores = self.evaluate()
        seconds = time.perf_counter() - started
        self.result.eval_seconds += seconds
        losses = self.accelerator.reduce(torch.stack(self.losses).mean(), reduction="sum")
        self.losses.clear()
        self._checked = 0
        evaluation = HistoryEntry(step / self.steps_per_epoch, step, float(losses), scores, seconds)
        history = self.result.history
        history.append(evaluation)
        score, best = scores[self.metric], history[self.result.best].scores[self.metric]
        is_best = len(history) == 1 or self.sign * score > self.sign * best
        if is_best:
            self.result.best = len(history) - 1
            self.result.best_state = trainable_state(self.accelerator.unwrap_model(self.model))
        self.on_evaluation(evaluation, is_best)
        patience = self.train.early_stopping_patience
        return patience is not None and len(history) - 1 - self.result.best >= patience

    def _check_losses(self) -> None:
        recent = self.losses[self._checked :]
        self._checked = len(self.losses)
        if recent and not bool(torch.isfinite(torch.stack(recent)).all()):
            raise DivergedError(
                f"The loss is not finite by update {self.result.num_steps}: lower train.learning_rate "
                f"(now {self.train.learning_rate:g}) or use train.precision=fp32."
            )

    def _synchronize(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
