"""The optimizer's parameter groups and the learning-rate schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petl_bench.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def build_optimizer(model: nn.Module, train: TrainConfig, in_head: Callable[[str], bool]) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases and norms are not decayed, the head may have its own rate.

    Args:
        model: The adapted model.
        train: Learning rates and weight decay.
        in_head: Whether a parameter of this name belongs to the head.
    """
    undecayed = _undecayed_names(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((in_head(name), name in undecayed), []).append(parameter)
    head_rate = train.learning_rate if train.head_learning_rate is None else train.head_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": head_rate if head else train.learning_rate,
                "weight_decay": 0.0 if plain else train.weight_decay,
            }
            for (head, plain), parameters in sorted(groups.items())
        ],
        # One kernel for all parameters.
        fused=True,
    )


def _undecayed_names(model: nn.Module) -> set[str]:
    """Parameters of norms, and every bias."""
    names = {name for name, _ in model.named_parameters() if "bias" in name.rpartition(".")[2] or "_bias." in name}
    for module_name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            names |= {f"{module_name}.{name}" for name, _ in module.named_parameters()}
    return names


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig, num_steps: int) -> Any:
    """Warm-up over `train.warmup_share` of the updates, then the chosen decay."""
    from transformers import get_scheduler

    return get_scheduler(
        _SCHEDULES[train.schedule],
        optimizer,
        num_warmup_steps=round(train.warmup_share * num_steps),
        num_training_steps=num_steps,
    )
