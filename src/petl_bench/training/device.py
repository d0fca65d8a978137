"""Where a run computes, in which precision, and whether its layers are compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from petl_bench.backbones.anatomy import Anatomy, classifier_of
from petl_bench.errors import RequestError
from petl_bench.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def settled_precision(train: TrainConfig) -> str:
    """The precision that `train.precision=auto` means on this machine: bf16 on a GPU that has it, else fp32."""
    if train.precision != "auto":
        return train.precision
    on_cuda = train.device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def make_accelerator(train: TrainConfig) -> Accelerator:
    """The process's place among devices and processes, in the wanted precision.

    Raises:
        RequestError: where the machine lacks the device, or the device the precision.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState

    if train.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("train.device=cuda, but torch sees no CUDA device: use train.device=cpu.")
    on_cuda = torch.cuda.is_available() and train.device != "cpu"
    if train.precision == "fp16" and not on_cuda:
        raise RequestError("train.precision=fp16 needs a CUDA device: use bf16 or fp32.")
    # One process may make many runs, each with a device and precision of its own; process groups stay.
    alone = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    # Without `cpu=True` Accelerate overlooks that torchrun started several processes on a machine without a GPU.
    precision = settled_precision(train)
    return Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision), cpu=not on_cuda)


def compile_layers(model: nn.Module, anatomy: Anatomy, num_frozen: int) -> None:
    """Has torch.compile translate each layer that every update computes, for any length.

    One by one: the layers are alike, so all but the first are found in the compiler's cache.

    Args:
        model: The adapted model, unwrapped.
        anatomy: Of its architecture.
        num_frozen: Layers of the trunk, which are computed once.
    """
    classifier = classifier_of(model)
    for layer in anatomy.get_layers(classifier)[num_frozen:]:
        layer.compile(dynamic=True)
