"""The two sides that bench_speed.py compares: the same training by petl_bench and by transformers' Trainer."""

from __future__ import annotations

import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from petl_bench.backbones.load import open_backbone
from petl_bench.config import RunConfig
from petl_bench.model import build_adapted
from petl_bench.records.predictions import predicted
from petl_bench.run.run import encode_task, run
from petl_bench.tasks.load import load_task
from petl_bench.tasks.metrics import compute_metrics
from petl_bench.training.loop import build_optimizer, build_schedule, num_training_steps


@dataclass(frozen=True)
class Timing:
    """One training until the end of an epoch; `train_seconds` includes the computation of cached features."""

    total_seconds: float
    train_seconds: float
    examples: int
    score: float

    @property
    def rate(self) -> float:
        """Examples a second of training."""
        return self.examples / self.train_seconds


def train_by_petl_bench(cfg: RunConfig) -> Timing:
    """One run, as `petl-bench run` makes it."""
    started = time.perf_counter()
    record = run(cfg)
    total = time.perf_counter() - started
    assert record.time
    assert record.scores
    assert record.protocol
    examples = cfg.train.epochs * record.protocol.num_train_examples
    features_seconds = (record.time.features_seconds or 0.0) + (record.time.cache_seconds or 0.0)
    train_seconds = record.time.train_seconds + features_seconds
    return Timing(total, train_seconds, examples, record.scores.last[cfg.task.metric])


def train_by_trainer(cfg: RunConfig, marks: tuple[int, ...], *, padded: bool) -> dict[int, Timing]:
    """Trains the same by transformers' Trainer.

    Args:
        cfg: The run.
        marks: Epochs at whose ends timings are taken.
        padded: Pads all rows to `task.max_length` tokens, not to the longest row of a batch.

    Returns:
        The timings by epoch.
    """
    started = time.perf_counter()
    task = load_task(cfg.task, cfg.data_root)
    backbone = open_backbone(cfg.backbone, cfg.layers)
    encoded = encode_task(task, backbone)
    steps = num_training_steps(len(encoded["train"]), cfg.train)
    model, _ = build_adapted(cfg, backbone, task.labels, steps)
    optimizer = build_optimizer(model, cfg.train, backbone.anatomy.in_head)
    clock = EpochClock(started)
    padding: dict[str, Any] = {"padding": "max_length", "max_length": cfg.task.max_length} if padded else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                num_train_epochs=cfg.train.epochs,
                per_device_train_batch_size=cfg.train.batch_size,
                per_device_eval_batch_size=cfg.train.eval_batch_size,
                max_grad_norm=cfg.train.max_grad_norm,
                bf16=cfg.train.precision == "bf16",
                seed=cfg.train.seed,
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                use_cpu=not torch.cuda.is_available(),
            ),
            data_collator=DataCollatorWithPadding(backbone.load_tokenizer(), **padding),
            train_dataset=_as_dataset(encoded["train"]),
            eval_dataset=_as_dataset(encoded["selection"]),
            compute_metrics=lambda found: compute_metrics(
                [cfg.task.metric], predicted(found.predictions), found.label_ids
            ),
            optimizers=(optimizer, build_schedule(optimizer, cfg.train, steps)),
            callbacks=[clock],
        )
        # It prints its evaluations.
        with redirect_stdout(None):
            trainer.train()
    scores = [entry[f"eval_{cfg.task.metric}"] for entry in trainer.state.log_history if "eval_loss" in entry]
    rows = len(encoded["train"])
    return {
        epoch: Timing(clock.totals[epoch - 1], clock.trained[epoch - 1], epoch * rows, scores[epoch - 1])
        for epoch in marks
    }


class EpochClock(TrainerCallback):
    """Seconds by the end of each epoch: in all, and of training alone."""

    def __init__(self, started: float) -> None:
        self.started, self.totals, self.trained = started, [], []
        self._spent = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._begun = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Notes what training took so far."""
        self._spent += time.perf_counter() - self._begun
        self.trained.append(self._spent)

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Notes what all took so far."""
        self.totals.append(time.perf_counter() - self.started)


def _as_dataset(rows: Any) -> list[dict[str, Any]]:
    columns = {"input_ids": rows.ids, "token_type_ids": rows.types}
    spans = list(zip(rows.offsets[:-1], rows.offsets[1:], strict=True))
    return [
        {name: array[start:end].tolist() for name, array in columns.items() if array is not None}
        | {"labels": rows.labels[index].item()}
        for index, (start, end) in enumerate(spans)
    ]
