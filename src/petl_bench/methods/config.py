"""What the settings of every method have in common."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class MethodConfig:
    """Base of every method's settings."""

    name: str = MISSING
    # train.learning_rate where the user gives none.
    default_learning_rate: float = 1e-3
    # train.head_learning_rate likewise; null: the head learns at the method's rate.
    default_head_learning_rate: float | None = None
