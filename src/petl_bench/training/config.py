"""Settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from petl_bench.errors import RequestError, parse_bytes, unknown_choice

CHOICES = {
    "schedule": ("linear", "cosine", "constant"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
    "selection": ("best", "last"),
    "batching": ("length_grouped", "shuffled"),
    "cache": ("auto", "device", "memory", "disk", "off"),
    "last_layer": ("all", "first_token"),
    "class_weights": ("none", "balanced"),
}


@dataclass
class TrainConfig:
    """How a model is trained; conf/train/default.yaml says what each setting means."""

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    eval_batch_size: int = 64
    batching: str = "length_grouped"
    class_weights: str = "none"
    learning_rate: float = 1e-4
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup_share: float = 0.06
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    precision: str = "auto"
    device: str = "auto"
    emulate_bf16: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    last_layer: str = "all"
    cache: str = "auto"
    cache_memory: str = "2GiB"
    cache_disk: str = "20GiB"
    seed: int = 0
    evaluate_every: int | None = None
    early_stopping_patience: int | None = None
    selection: str = "best"
    save_weights: bool = True
    checkpoint_seconds: float | None = 60.0


def check_train(train: TrainConfig, task_type: str) -> None:
    """Raises RequestError for a value outside its range, or one that does not fit the type of the task."""
    for key, allowed in CHOICES.items():
        if getattr(train, key) not in allowed:
            raise unknown_choice(f"train.{key}", getattr(train, key), allowed)
    if train.class_weights != "none" and task_type not in ("classification", "tagging"):
        raise RequestError(
            f"train.class_weights={train.class_weights} is for rows of one class each, and for tagging, not for "
            f"task.type={task_type}: use train.class_weights=none."
        )
    counts = ("epochs", "max_steps", "batch_size", "accumulation", "eval_batch_size", "evaluate_every",
              "early_stopping_patience")  # fmt: skip
    for key in counts:
        value = getattr(train, key)
        if value is not None and value < 1:
            raise RequestError(f"train.{key}={value} must be at least 1.")
    for key in ("learning_rate", "head_learning_rate", "max_grad_norm"):
        value = getattr(train, key)
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"train.{key}={value} must be greater than 0 and finite.")
    if train.checkpoint_seconds is not None and not 0 <= train.checkpoint_seconds < math.inf:
        raise RequestError(f"train.checkpoint_seconds={train.checkpoint_seconds} must not be negative.")
    if not 0 <= train.weight_decay < math.inf:
        raise RequestError(f"train.weight_decay={train.weight_decay} must not be negative.")
    if not 0 <= train.seed < 2**32:
        raise RequestError(f"train.seed={train.seed} must lie in 0..{2**32 - 1}.")
    if not 0 <= train.warmup_share <= 1:
        raise RequestError(f"train.warmup_share={train.warmup_share} must lie in 0..1.")
    for key in ("cache_memory", "cache_disk"):
        parse_bytes(f"train.{key}", getattr(train, key))
    if train.accumulation > train.batch_size:
        raise RequestError(
            f"train.accumulation={train.accumulation} exceeds train.batch_size={train.batch_size}: "
            "it says into how many passes the rows of one update are split."
        )
