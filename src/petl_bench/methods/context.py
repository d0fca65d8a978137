"""What a method is told about the model it adapts."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.config import LayerPlan


@dataclass(frozen=True)
class AdaptContext:
    """The model's anatomy, the layers to adapt, and the length of the training to come.

    Attributes:
        anatomy: Where layers, projections, norms and head of this architecture are.
        plan: Which layers are adapted.
        num_training_steps: Number of updates, for methods that schedule themselves by it.
    """

    anatomy: Anatomy
    plan: LayerPlan
    num_training_steps: int

    @property
    def layers_to_transform(self) -> list[int] | None:
        """The adapted layers as PEFT counts them, from 0; None where the whole backbone is adapted."""
        return None if self.plan.everything else [layer - 1 for layer in self.plan.adapted]
