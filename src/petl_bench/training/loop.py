"""The training loop: epochs of updates, evaluations between them, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.records.schema import HistoryEntry
from petl_bench.training.batching import epoch_batches
from petl_bench.training.config import TrainConfig
from petl_bench.training.fast_dropout import fast_dropout
from petl_bench.training.feed import Feed

if TYPE_CHECKING:
    from accelerate import Accelerator

# Updates between looks at the loss: each look waits for the device.
CHECK_EVERY = 20
# Updates that warm up (allocator, kernels, caches); rates leave them out where there are more.
WARM_UP = 3


@dataclass(frozen=True)
class WarmUp:
    """What was done by the end of the first updates; nothing where a training is no longer than they are."""

    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0


@dataclass
class FitResult:
    """What training did.

    Attributes:
        history: One entry an evaluation.
        best: Index of the best one.
        best_state: Trainable tensors as they were then, on the CPU.
        num_steps, num_examples: What was seen, over all processes.
        num_tokens, num_padded_tokens: What this process saw, without and with padding.
        train_seconds: Evaluations excluded.
        eval_seconds: Evaluations alone.
        warm_up: What of all this fell to the first updates.
    """

    history: list[HistoryEntry] = field(default_factory=list)
    best: int = 0
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    warm_up: WarmUp = field(default_factory=lambda: WarmUp())


def steps_per_epoch(num_rows: int, train: TrainConfig) -> int:
    """Updates of one epoch."""
    return math.ceil(num_rows / train.batch_size)


def num_training_steps(num_rows: int, train: TrainConfig) -> int:
    """Updates of a whole training."""
    return train.max_steps or train.epochs * steps_per_epoch(num_rows, train)


class Fitter:
    """Trains a model; `fit` is the whole of it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        feed: Feed,
        train: TrainConfig,
        accelerator: Accelerator,
        evaluate: Callable[[], dict[str, float]],
        *,
        metric: str,
        higher_is_better: bool,
        on_evaluation: Callable[[HistoryEntry, bool], None] = lambda _evaluation, _is_best: None,
        after_update: Callable[[int], None] | None = None,
        on_warm: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.feed, self.train, self.accelerator = feed, train, accelerator
        self.evaluate, self.on_evaluation, self.after_update = evaluate, on_evaluation, after_update
        self.on_warm = on_warm
        self.metric, self.sign = metric, 1.0 if higher_is_better else -1.0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.steps_per_epoch = steps_per_epoch(len(feed.rows), train)
        self.total_steps = num_training_steps(len(feed.rows), train)
        self.result = FitResult()
        self._losses: list[torch.Tensor] = []
        self._checked = 0
        self._best_score = -math.inf

    def fit(self) -> FitResult:
        """Trains to the end or until early stopping.

        Raises:
            DivergedError: where the loss or an output is not finite.
        """
        self.model.train()
        started = time.perf_counter()
        bar = tqdm(total=self.total_steps, desc="training", unit="step", delay=2, disable=None, leave=False)
        with bar, fast_dropout(self.accelerator.device):
            for step, indices in enumerate(self._batches(), start=1):
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

    def _note_warm_up(self, started: float) -> None:
        self._synchronize()
        result = self.result
        seconds = result.train_seconds + time.perf_counter() - started
        result.warm_up = WarmUp(
            result.num_steps, result.num_examples, result.num_tokens, result.num_padded_tokens, seconds
        )
        self.on_warm()

    def _batches(self) -> Iterator[np.ndarray]:
        train = self.train
        for step in range(self.total_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0:
                batches = epoch_batches(self.feed.rows.lengths, train.batch_size, train.batching, train.seed, epoch)
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
        self._losses.append(torch.stack(losses).sum())
        self.result.num_examples += len(indices)

    def _forward_backward(self, indices: np.ndarray, batch_rows: int) -> torch.Tensor:
        """Adds the gradient of these rows' share of the batch's mean loss; returns that share of the loss."""
        world = self.accelerator.num_processes
        mine = indices[self.accelerator.process_index :: world]
        # A process without a row still takes part in the gradient exchange, with weight 0.
        batch = self.feed.batch(mine if len(mine) else indices[:1])
        with self.accelerator.autocast():
            loss = self.feed.forward(self.model, batch, batch.labels).loss
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
        losses = self.accelerator.reduce(torch.stack(self._losses).mean(), reduction="sum")
        self._losses.clear()
        self._checked = 0
        evaluation = HistoryEntry(step / self.steps_per_epoch, step, float(losses), scores, seconds)
        history = self.result.history
        history.append(evaluation)
        is_best = self.sign * scores[self.metric] > self._best_score
        if is_best:
            self._best_score = self.sign * scores[self.metric]
            self.result.best = len(history) - 1
            self.result.best_state = trainable_state(self.accelerator.unwrap_model(self.model))
        self.on_evaluation(evaluation, is_best)
        patience = self.train.early_stopping_patience
        return patience is not None and len(history) - 1 - self.result.best >= patience

    def _check_losses(self) -> None:
        recent = self._losses[self._checked :]
        self._checked = len(self._losses)
        if recent and not bool(torch.isfinite(torch.stack(recent)).all()):
            raise DivergedError(
                f"The loss is not finite by update {self.result.num_steps}: lower train.learning_rate "
                f"(now {self.train.learning_rate:g}) or use train.precision=fp32."
            )

    def _synchronize(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable tensors, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Puts tensors kept by `trainable_state` back."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
