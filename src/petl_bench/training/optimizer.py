"""The optimizer's parameter groups, its updates, and the learning-rate schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petl_bench.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

# Patterns of parameter names, as `get_parameter_names` takes them: every bias, also one that an adapter has wrapped.
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

    A fused optimizer skips the update inside its kernel, so that its caller sees nothing of it. The scaler lowers its
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
    before = scaler.get_scale()
    optimizer.step()
    return scaler.get_scale() >= before


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig, num_steps: int) -> Any:
    """Builds the learning-rate schedule: warm-up over `train.warmup_share` of the updates, then the chosen decay."""
    from transformers import get_scheduler

    return get_scheduler(
        _SCHEDULES[train.schedule],
        optimizer,
        num_warmup_steps=round(train.warmup_share * num_steps),
        num_training_steps=num_steps,
    )
