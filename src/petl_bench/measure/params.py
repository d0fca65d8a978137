"""Counts parameters: the method's, the head's, the backbone's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

# PEFT keeps a frozen copy of every module it trains whole.
_FROZEN_COPY = ".original_module."


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; tied ones count once, PEFT's frozen copy of the head not at all.

    Attributes:
        total: The adapted model.
        backbone: The encoder before it was adapted, its pooler included, the head not.
        trainable: Trained in all.
        trainable_method: Trained outside the head.
        trainable_head: Trained in the head.
    """

    total: int
    backbone: int
    trainable: int
    trainable_method: int
    trainable_head: int

    @property
    def trainable_share_of_backbone_percent(self) -> float:
        """Trained parameters, the head's included, in percent of the backbone's."""
        return 100.0 * self.trainable / self.backbone


def count_backbone(model: nn.Module, in_head: Callable[[str], bool]) -> int:
    """Parameters of a plain model outside its head."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not in_head(name))


def count_parameters(model: nn.Module, backbone: int, in_head: Callable[[str], bool]) -> ParameterCounts:
    """Counts an adapted model's parameters.

    Args:
        model: The adapted model.
        backbone: `count_backbone` of the plain model.
        in_head: Whether a parameter of the *adapted* model belongs to the head.
    """
    kept = [(name, parameter) for name, parameter in model.named_parameters() if _FROZEN_COPY not in name]
    trained = [(name, parameter.numel()) for name, parameter in kept if parameter.requires_grad]
    head = sum(count for name, count in trained if in_head(name))
    trainable = sum(count for _, count in trained)
    return ParameterCounts(
        total=sum(parameter.numel() for _, parameter in kept),
        backbone=backbone,
        trainable=trainable,
        trainable_method=trainable - head,
        trainable_head=head,
    )
