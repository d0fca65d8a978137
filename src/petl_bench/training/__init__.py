"""Settings of the training loop."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from petl_bench.errors import RequestError, parse_bytes
from petl_bench.settings import MISSING, check_choices, setting

# The seeds that NumPy accepts too.
SEED_RANGE = range(2**32)


@dataclass
class TrainConfig:
    """How a model is trained."""

    epochs: int = setting(3, "Passes over the training rows.")
    max_steps: int | None = setting(None, "A number of updates instead of epochs.")
    batch_size: int = setting(32, "Rows of an update, over all processes.")
    accumulation: int = setting(1, "Passes that the rows of an update are split into: less memory, the same update.")
    eval_batch_size: int = setting(64, "Rows of a pass that evaluates, or computes features of frozen layers.")
    batching: str = setting(
        "length_grouped",
        "length_grouped: rows of like length share a batch. shuffled: batches are strictly random.",
        choices=("length_grouped", "shuffled"),
    )
    class_weights: str = setting(
        "none",
        "balanced: weight each class (in tagging: each tag) inversely to its frequency, so that all classes contribute "
        "equally to the loss. none: no weights.",
        choices=("none", "balanced"),
    )
    learning_rate: float = setting(MISSING, "The highest learning rate; unless given, method.default_learning_rate.")
    head_learning_rate: float | None = setting(
        None, "That of the head; unless given, method.default_head_learning_rate. null: the same as learning_rate."
    )
    weight_decay: float = setting(0.01, "Decoupled weight decay (AdamW); not applied to biases and norms.")
    warmup_share: float = setting(0.06, "Share of the updates in which the learning rate rises from 0.")
    schedule: str = setting(
        "linear", "Learning-rate schedule after the warm-up.", choices=("linear", "cosine", "constant")
    )
    max_grad_norm: float = setting(1.0, "Gradients of a greater norm are scaled down to it.")
    precision: str = setting(
        "auto",
        "fp16 needs a CUDA device. auto: bf16 on a GPU that has it, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = setting(
        "auto", "auto: cuda where torch sees such a device, else cpu.", choices=("auto", "cpu", "cuda")
    )
    emulate_bf16: bool = setting(
        False, "Allow bf16 on a GPU that has no instructions for it, where it is slower than fp32."
    )
    gradient_checkpointing: bool = setting(
        False,
        "Compute activations again in the backward pass instead of keeping them: less memory, about a third more time.",
    )
    compile: bool = setting(
        False,
        "Compile the trained layers with torch.compile: takes a minute or so at first; needs a C++ compiler on a CPU.",
    )
    last_layer: str = setting(
        "all",
        "first_token: where the head reads the first token alone, the last layer is computed only for that token (keys "
        "and values still for all). Less time and memory; sums have another order, so the last bits differ. Refused "
        "where other tokens are read.",
        choices=("all", "first_token"),
    )
    cache: str = setting(
        "auto",
        "Where features of the frozen layers below all that is trained are kept once they are computed; off: they are "
        "computed with every batch. auto: on a CUDA device where they fit cache_memory and half of what is free there; "
        "else in memory where they fit cache_memory, else on disk where they fit cache_disk, unless moving them to a "
        "CUDA device takes longer than computing them, or the run sees every row once. shared: as auto, also for a run "
        "that sees every row once, as others in the process use the same features (not on a CUDA device). Scores are "
        "the same, times are not: a finished run with times of another mode than the one asked for is made again (auto "
        "and shared take any).",
        choices=("auto", "shared", "device", "memory", "disk", "off"),
    )
    cache_memory: str = setting("2GiB", "Most memory that cached features may take.")
    cache_disk: str = setting("20GiB", "Most space on disk that cached features may take.")
    seed: int = setting(0, "Seed of the new weights, the order of rows and dropout.")
    evaluate_every: int | None = setting(None, "Updates between evaluations; null: once an epoch.")
    early_stopping_patience: int | None = setting(
        None, "Stop after this many evaluations without a better score; null: never."
    )
    selection: str = setting(
        "best",
        "best: the reported weights are those of the best evaluation on the selection split. last: the final ones.",
        choices=("best", "last"),
    )
    save_weights: bool = setting(
        True, "Keep the trained weights in the run's folder, as `petl-bench predict` needs them."
    )
    checkpoint_seconds: float | None = setting(
        60.0,
        "Seconds between checkpoints, from which the same command continues an interrupted run (on the CPU with the "
        "same bits); more where writing one takes long. null: no checkpoints.",
    )


def check_train(train: TrainConfig, task_type: str) -> None:
    """Raises RequestError for a value outside its range, or one that does not fit the type of the task."""
    check_choices("train", train)
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
    if train.seed not in SEED_RANGE:
        raise RequestError(f"train.seed={train.seed} must lie in 0..{SEED_RANGE[-1]}.")
    if not 0 <= train.warmup_share <= 1:
        raise RequestError(f"train.warmup_share={train.warmup_share} must lie in 0..1.")
    for key in ("cache_memory", "cache_disk"):
        parse_bytes(f"train.{key}", getattr(train, key))
    if train.accumulation > train.batch_size:
        raise RequestError(
            f"train.accumulation={train.accumulation} exceeds train.batch_size={train.batch_size}: "
            "it says into how many passes the rows of one update are split."
        )


# With few rows, the usual epochs make too few updates: aim at this number of updates, in at most so many epochs.
_UPDATES, _MOST_EPOCHS = 400, 20
_FEW_ROWS, _SMALL_BATCH = 2000, 16


def training_for_few_rows(num_rows: int, train: TrainConfig, given: Collection[str]) -> list[str]:
    """Settings with which this number of training rows makes enough updates to learn from.

    Args:
        num_rows: Number of training rows.
        train: The current settings.
        given: Keys that were given, whose values stay; all stay if a recipe or an option of `train` was given.

    Returns:
        Overrides of `train.batch_size` and `train.epochs`.
    """
    if {"recipe", "train"} & set(given):
        return []
    overrides, batch_size = [], train.batch_size
    if num_rows < _FEW_ROWS and batch_size > _SMALL_BATCH and "train.batch_size" not in given:
        batch_size = _SMALL_BATCH
        overrides.append(f"train.batch_size={batch_size}")
    if "train.epochs" not in given and train.max_steps is None:
        epochs = min(max(train.epochs, math.ceil(_UPDATES * batch_size / num_rows)), _MOST_EPOCHS)
        overrides.append(f"train.epochs={epochs}")
    return overrides
