"""The training loop, which evaluates between updates and keeps the best weights; its optimizer and its schedule."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from petl_bench.errors import DivergedError
from petl_bench.measure.run_costs import CompileClock
from petl_bench.records.schema import HistoryEntry
from petl_bench.training import TrainConfig
from petl_bench.training.batches import BatchSource, epoch_batches, loss_terms
from petl_bench.training.checkpoint import Progress, TrainingState, WarmUp, trainable_weights
from petl_bench.training.device import decided_by_main, fast_dropout

if TYPE_CHECKING:
    from petl_bench.training.checkpoint import Checkpoints


# Updates between checks of the loss: each check waits for the device.
CHECK_EVERY = 20
# The first updates, which warm up allocator, kernels and caches; if there are more, rates exclude these.
WARM_UP = 3
# The scale of the loss starts at 65,536 and is halved by each overflow. No useful gradient needs a scale this small.
_SMALLEST_LOSS_SCALE = 2.0**-16

_log = logging.getLogger(__name__)


class Callback(Protocol):
    """Reacts to the events of a training. Subclasses override what they need; the other methods do nothing."""

    def on_resume(self, progress: Progress) -> None:
        """Called before the first update if the training continues from a checkpoint."""
        return

    def on_update(self, step: int) -> None:
        """Called after each update that was not skipped, numbered from 1, while the gradients are still there."""
        return

    def on_warm(self) -> None:
        """Called once, after the first updates."""
        return

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Called after each evaluation; `is_best` says whether its weights are the best so far."""
        return


def steps_per_epoch(num_rows: int, train: TrainConfig) -> int:
    """Returns the number of updates of one epoch."""
    return math.ceil(num_rows / train.batch_size)


def num_training_steps(num_rows: int, train: TrainConfig) -> int:
    """Returns the number of updates of a whole training."""
    return train.max_steps or train.epochs * steps_per_epoch(num_rows, train)


class TrainingLoop:
    """Trains a model; `run` performs the whole training.

    Args:
        state: The model with its optimizer and learning-rate schedule.
        source: Batches of the training rows.
        train: Settings of the training.
        evaluate: Returns the model's scores on the selection split, by metric.
        metric: The metric that decides which evaluation is the best.
        higher_is_better: Whether higher values of that metric are better.
        callbacks: Called at the events of the training, in this order.
        checkpoints: Where the training continues from, and where it writes its state; None for neither.
        class_weights: The weight of each class in the loss, shape (classes,); None: all weigh the same.
        count_terms: The number of terms over which the loss of rows with these indices is a mean; None: `loss_terms`.
    """

    def __init__(
        self,
        state: TrainingState,
        source: BatchSource,
        train: TrainConfig,
        evaluate: Callable[[], dict[str, float]],
        *,
        metric: str,
        higher_is_better: bool,
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpoints | None = None,
        class_weights: np.ndarray | None = None,
        count_terms: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        self.state, self.source, self.train, self.evaluate = state, source, train, evaluate
        self.metric, self.sign = metric, 1.0 if higher_is_better else -1.0
        self.callbacks, self.checkpoints = callbacks, checkpoints
        self.accelerator, self.class_weights = state.accelerator, class_weights
        self.count_terms = count_terms or partial(loss_terms, source.rows, class_weights=class_weights)
        self.parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        self.steps_per_epoch = steps_per_epoch(len(source.rows), train)
        self.total_steps = num_training_steps(len(source.rows), train)
        # Number of losses since the last evaluation that are known to be finite.
        self._num_checked = 0
        self._clock_started = 0.0
        self._compiling = CompileClock(enabled=train.compile)

    def run(self) -> Progress:
        """Trains to the end, or until early stopping.

        Returns:
            What the training has done, with the history of evaluations and the best weights.

        Raises:
            DivergedError: If the loss or an output is not finite.
        """
        self.state.model.train()
        self._resume()
        first = self.state.progress.num_steps + 1
        bar = tqdm(
            total=self.total_steps, initial=first - 1, desc="training", unit="step", delay=2, disable=None, leave=False
        )
        self._clock_started = time.perf_counter()
        with bar, fast_dropout(self.accelerator.device), self._compiling:
            for step, indices in enumerate(self._batches(first - 1), start=first):
                # Written before an update, so that it contains all of the previous one, including its evaluation.
                if self.checkpoints is not None and self._checkpoint_due(self.checkpoints, step):
                    self._write_checkpoint(self.checkpoints)
                self._update(indices)
                bar.update()
                if step % CHECK_EVERY == 0:
                    self._check_losses()
                if step == WARM_UP < self.total_steps:
                    self._end_warm_up()
                evaluation_due = step % (self.train.evaluate_every or self.steps_per_epoch) == 0
                if (evaluation_due or step == self.total_steps) and self._evaluate():
                    break
        return self.state.progress

    def _resume(self) -> None:
        saved = None if self.checkpoints is None else decided_by_main(self.checkpoints.read)
        if saved is None:
            return
        self.state.load_state_dict(saved)
        progress = self.state.progress
        progress.resumed_at.append(progress.num_steps)
        for callback in self.callbacks:
            callback.on_resume(progress)
        _log.info("continues after update %d of %d", progress.num_steps, self.total_steps)

    def _batches(self, done: int) -> Iterator[np.ndarray]:
        """The batches of row indices after the first `done` ones."""
        train = self.train
        for step in range(done, self.total_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0 or step == done:
                batches = epoch_batches(self.source.rows.lengths, train.batch_size, train.batching, train.seed, epoch)
            yield batches[position]

    def _update(self, indices: np.ndarray) -> None:
        """One update from a batch, split over processes and passes so that each row (or tagged word) weighs the same.

        An update whose gradient overflowed in fp16 is skipped: its batch is used up, the callbacks are not called, and
        the schedule does not advance.
        """
        passes = np.array_split(indices, min(self.train.accumulation, len(indices)))
        num_terms = self.count_terms(indices)
        losses = []
        for number, part in enumerate(passes, start=1):
            is_last = number == len(passes)
            with nullcontext() if is_last else self.accelerator.no_sync(self.state.model):
                losses.append(self._forward_backward(part, num_terms))
        self.accelerator.clip_grad_norm_(self.parameters, self.train.max_grad_norm)
        progress = self.state.progress
        progress.num_steps += 1
        if try_update(self.state.optimizer, self.accelerator.scaler):
            for callback in self.callbacks:
                callback.on_update(progress.num_steps - progress.num_skipped)
            self.state.schedule.step()
        else:
            progress.num_skipped += 1
            self._check_loss_scale()
        self.state.optimizer.zero_grad()
        progress.losses.append(torch.stack(losses).sum())
        progress.num_examples += len(indices)

    def _forward_backward(self, indices: np.ndarray, terms_of_batch: float) -> torch.Tensor:
        """Adds the gradient of these rows' share of the batch's mean loss, and returns that share of the loss."""
        world = self.accelerator.num_processes
        own_indices = indices[self.accelerator.process_index :: world]
        # A process without a row still takes part in the gradient exchange, with weight 0.
        batch = self.source.batch(own_indices if len(own_indices) else indices[:1])
        terms = self.count_terms(own_indices)
        with self.accelerator.autocast():
            outputs = self.source.forward(self.state.model, batch, batch.labels)
            loss = outputs.loss
            if self.class_weights is not None and batch.labels is not None:
                loss = reweighted(loss, outputs.logits, batch.labels, self.class_weights)
        # The mean over no terms is not a number.
        share = loss * (terms / terms_of_batch) if terms else 0.0 * outputs.logits.sum()
        # Gradients are averaged over the processes; the factor turns that into a sum.
        self.accelerator.backward(share * world)
        if len(own_indices):
            self.state.progress.num_tokens += batch.num_tokens
            self.state.progress.num_padded_tokens += batch.num_padded_tokens
        return share.detach()

    def _evaluate(self) -> bool:
        """Scores the selection split and keeps the weights if they are the best so far; returns True to stop early."""
        progress = self.state.progress
        self._check_losses()
        self._add_train_seconds()
        started = time.perf_counter()
        scores = self.evaluate()
        seconds = time.perf_counter() - started
        progress.eval_seconds += seconds
        # The evaluation's own seconds include what was compiled for it.
        self._compiling.lap()
        losses = self.accelerator.reduce(torch.stack(progress.losses).mean(), reduction="sum")
        progress.losses.clear()
        self._num_checked = 0
        step, history = progress.num_steps, progress.history
        entry = HistoryEntry(step / self.steps_per_epoch, step, float(losses), scores, seconds)
        history.append(entry)
        score, best = scores[self.metric], history[progress.best].scores[self.metric]
        is_best = len(history) == 1 or self.sign * score > self.sign * best
        if is_best:
            progress.best = len(history) - 1
            progress.best_weights = trainable_weights(self.state.unwrapped_model)
        for callback in self.callbacks:
            callback.on_evaluation(entry, is_best)
        self._clock_started = time.perf_counter()
        patience = self.train.early_stopping_patience
        return patience is not None and len(history) - 1 - progress.best >= patience

    def _checkpoint_due(self, checkpoints: Checkpoints, step: int) -> bool:
        """Whether to write a checkpoint before this update; with several processes, the first one's clock decides.

        Reading it makes the processes wait for each other, so it is read only as often as the losses are checked.
        """
        if self.accelerator.num_processes == 1:
            return checkpoints.due
        if checkpoints.seconds is None or (checkpoints.seconds > 0 and (step - 1) % CHECK_EVERY):
            return False
        return decided_by_main(lambda: checkpoints.due)

    def _write_checkpoint(self, checkpoints: Checkpoints) -> None:
        self._check_losses()
        self._add_train_seconds()
        state = self.state.state_dict()
        if self.accelerator.is_main_process:
            checkpoints.write(self.state.progress.num_steps, state)
        self._clock_started = time.perf_counter()

    def _end_warm_up(self) -> None:
        self._add_train_seconds()
        progress = self.state.progress
        progress.warm_up = WarmUp(**{field.name: getattr(progress, field.name) for field in fields(WarmUp)})
        for callback in self.callbacks:
            callback.on_warm()

    def _add_train_seconds(self) -> None:
        """Adds the time since the clock was started, and restarts it."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.state.progress.train_seconds += now - self._clock_started
        self.state.progress.compile_seconds += self._compiling.lap()
        self._clock_started = now

    def _check_loss_scale(self) -> None:
        """Raises DivergedError if gradients overflow however small the loss is scaled."""
        if self.accelerator.scaler.get_scale() < _SMALLEST_LOSS_SCALE:
            raise DivergedError(
                f"The gradients overflow in fp16 by update {self.state.progress.num_steps}, however small the loss is "
                f"scaled: use train.precision=bf16 or fp32, or lower train.learning_rate (now "
                f"{self.train.learning_rate:g})."
            )

    def _check_losses(self) -> None:
        """Raises DivergedError in every process if any of them had a loss since the last check that is not finite."""
        losses = self.state.progress.losses
        recent = losses[self._num_checked :]
        self._num_checked = len(losses)
        # The sum over processes is not finite if the share of any process is not. This waits for the device.
        if recent and not bool(torch.isfinite(self.accelerator.reduce(torch.stack(recent), reduction="sum")).all()):
            raise DivergedError(
                f"The loss is not finite by update {self.state.progress.num_steps}: lower train.learning_rate "
                f"(now {self.train.learning_rate:g}) or use train.precision=fp32."
            )


def reweighted(
    loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, class_weights: np.ndarray
) -> torch.Tensor:
    """Replaces a loss's mean over rows, or words, by the mean that is weighted by their classes.

    Terms that a method has added to the loss, such as AdaLoRA's, stay.

    Args:
        loss: The model's loss.
        logits: Its outputs, shape (..., classes).
        labels: Class indices, shape (...); those equal to `NO_LABEL` are ignored.
        class_weights: Shape (classes,).

    Returns:
        A scalar, with the gradient of the weighted mean.
    """
    weights = torch.as_tensor(class_weights, dtype=torch.float32, device=logits.device)
    rows, classes = logits.flatten(0, -2), labels.flatten()
    return loss - cross_entropy(rows, classes) + cross_entropy(rows, classes, weight=weights)


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

# Patterns of parameter names, as `get_parameter_names` takes them: every bias, even if an adapter has wrapped it.
_BIASES = (r"bias[^.]*$", r"_bias\.")


def build_optimizer(model: nn.Module, train: TrainConfig, in_head: Callable[[str], bool]) -> torch.optim.Optimizer:
    """Builds AdamW over the trainable parameters.

    Biases and the parameters of norms are not decayed. The head may have its own learning rate.

    Args:
        model: The adapted model.
        train: Learning rates and weight decay.
        in_head: Whether a parameter of this name belongs to the head.

    Returns:
        The optimizer, with up to four parameter groups: backbone and head, decayed and not.
    """
    from transformers.trainer_pt_utils import get_parameter_names

    norms = {type(module) for module in model.modules() if "norm" in type(module).__name__.lower()}
    decayed = set(get_parameter_names(model, norms, _BIASES))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((in_head(name), name not in decayed), []).append(parameter)
    head_rate = train.learning_rate if train.head_learning_rate is None else train.head_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": head_rate if is_head else train.learning_rate,
                "weight_decay": 0.0 if is_undecayed else train.weight_decay,
            }
            for (is_head, is_undecayed), parameters in sorted(groups.items())
        ],
        # One kernel updates all parameters.
        fused=True,
    )


def try_update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> bool:
    """Updates the parameters, unless a gradient overflowed.

    A fused optimizer skips the update inside its kernel, where its caller cannot see it. The scaler lowers its
    factor after an overflow, and only then.

    Args:
        optimizer: As prepared by the accelerator; its step also updates the scaler's factor.
        scaler: Scales the loss in fp16; None in other precisions, which skip no update.

    Returns:
        False if the update was skipped.
    """
    if scaler is None:
        optimizer.step()
        return True
    scale_before = scaler.get_scale()
    optimizer.step()
    return scaler.get_scale() >= scale_before


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig, num_steps: int) -> Any:
    """Builds the learning-rate schedule: warm-up over `train.warmup_share` of the updates, then the chosen decay."""
    from transformers import get_scheduler

    return get_scheduler(
        _SCHEDULES[train.schedule],
        optimizer,
        num_warmup_steps=round(train.warmup_share * num_steps),
        num_training_steps=num_steps,
    )
