"""What a training did."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from petl_bench.records.schema import HistoryEntry


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
        resumed_at: Updates after which the training was cut off and went on in another process.
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
    warm_up: WarmUp = field(default_factory=WarmUp)
    resumed_at: list[int] = field(default_factory=list)
