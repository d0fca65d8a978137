"""Memory of one training step by kind, and its operations, counted storage by storage.

The step is one update in its steady state: optimizer states are there already. It counts on real CPU and CUDA tensors,
and, where `posed_as_cpu` has prepared the model, on tensors without memory: the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from petl_bench.measure.flops import FlopTally
from petl_bench.measure.storages import StorageLog

KINDS = ("weights", "gradients", "optimizer", "activations", "temporaries")
PHASES = ("forward", "backward", "optimizer")
# Fused attention kernels by the operator that stands for each.
_KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": "flash (cpu)",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
}


@dataclass(frozen=True)
class StepCount:
    """What one update takes; all sizes in bytes.

    Attributes:
        weights: Parameters and buffers, tied ones once.
        gradients: All gradients at the end of the backward pass.
        optimizer: The optimizer's states.
        activations: What the forward pass leaves behind for the backward pass.
        at_peak: What each kind held at the peak; temporaries are all the rest, the batch included. Sums to `peak`.
        peak: The most that was held at once.
        peak_phase: forward, backward or optimizer: where that was.
        kernel: Which attention kernel did the work.
        flops: Floating-point operations of one pass, forward and backward: matrix products, convolutions and fused
            attention, a multiply-add as two.
        course: Bytes held after each event of the step, in order.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    at_peak: dict[str, int]
    peak: int
    peak_phase: str
    kernel: str
    flops: int
    course: tuple[int, ...]


def count_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, torch.Tensor],
    *,
    autocast: torch.dtype | None = None,
    passes: int = 1,
    max_grad_norm: float | None = None,
) -> StepCount:
    """Makes updates with this batch and counts the last one.

    The model is trained by it, by two updates: give it a copy, or an optimizer whose rates are 0.

    Args:
        model: The adapted model, in training mode.
        optimizer: Over its trainable parameters.
        inputs: The batch of one pass, labels included.
        autocast: Lower precision of the forward pass; None for the weights' own.
        passes: Forward and backward passes an update (gradient accumulation); the second meets the first's gradients,
            so more than two change nothing.
        max_grad_norm: Gradients are clipped to it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(model.parameters()).device
    _create_optimizer_states(optimizer, parameters)
    tally = FlopTally()
    log = StorageLog(lambda place: place.type == device.type, tally)
    weights = log.numbers([*model.parameters(), *model.buffers()])
    states = log.numbers(_state_tensors(optimizer))
    log.numbers(inputs.values())
    start = len(log.events)
    marks: list[int] = []
    for _ in range(passes):
        tally.flops = 0
        with log:
            before = log.alive
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = model(**inputs).loss
            activations = log.alive - before
            marks.append(len(log.events))
            loss.backward()
            del loss
        marks.append(len(log.events))
    gradients = log.numbers(parameter.grad for parameter in parameters if parameter.grad is not None)
    with log:
        if max_grad_norm is not None:
            clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    kinds = {"weights": weights, "optimizer": states, "gradients": gradients, "activations": activations}
    return _account(log, kinds, start, marks, tally, model)


def _create_optimizer_states(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _account(
    log: StorageLog, kinds: dict[str, set[int]], start: int, marks: list[int], tally: FlopTally, model: nn.Module
) -> StepCount:
    """Reads the log: what each kind comes to, and what was there at the highest moment."""
    sizes: dict[int, int] = {}
    for number, change in log.events:
        sizes.setdefault(number, change)
    totals = {kind: sum(sizes[number] for number in numbers) for kind, numbers in kinds.items()}
    course = tuple(accumulate(change for _, change in log.events))
    moment = max(range(start, len(course)), key=course.__getitem__)
    kind_of = {number: kind for kind, numbers in reversed(kinds.items()) for number in numbers}
    at_peak = dict.fromkeys(KINDS, 0)
    for number, change in log.events[: moment + 1]:
        at_peak[kind_of.get(number, "temporaries")] += change
    # marks: ends of forward and backward of every pass, in turn.
    before = sum(mark <= moment for mark in marks)
    return StepCount(
        **totals,
        at_peak=at_peak,
        peak=course[moment],
        peak_phase="optimizer" if before == len(marks) else PHASES[before % 2],
        kernel=_kernel(tally.attention, model),
        flops=tally.flops,
        course=course,
    )


def _kernel(operators: set[str], model: nn.Module) -> str:
    for operator, name in _KERNELS.items():
        if operator in operators:
            return name
    eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    return "eager" if eager else "math"
