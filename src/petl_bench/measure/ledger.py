"""Memory of one training step by kind, and its operations, counted storage by storage.

The step is one update in its steady state: optimizer states are there already. It counts on real CPU and CUDA tensors,
and, where `posed_as_cpu` has prepared the model, on tensors without memory: the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from petl_bench.measure.flops import FlopTally
from petl_bench.measure.storages import StorageLog

KINDS = ("weights", "gradients", "optimizer", "activations", "temporaries")
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
        activations: What the forward pass leaves behind for the backward pass; of several passes, the most.
        at_peak: What each kind held at the peak; temporaries are all the rest, the batch included. Sums to `peak`.
        peak: The most that was held at once.
        peak_phase: forward, backward or optimizer: where that was.
        kernel: Which attention kernel did the work.
        flops: Floating-point operations of each pass, forward and backward.
        course: Bytes held after each event of the update, in order.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    at_peak: dict[str, int]
    peak: int
    peak_phase: str
    kernel: str
    flops: tuple[int, ...]
    course: tuple[int, ...]


def count_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    autocast: torch.dtype | None = None,
    max_grad_norm: float | None = None,
) -> StepCount:
    """Makes two updates and counts the second.

    The model is trained by it: give it a copy, or an optimizer whose rates are 0.

    Args:
        model: The adapted model, in training mode.
        optimizer: Over its trainable parameters.
        batches: What each pass of the update is given, labels included. With gradient accumulation the second pass
            meets the first's gradients; further ones of the same size change nothing.
        autocast: Lower precision of the forward pass; None for the weights' own.
        max_grad_norm: Gradients are clipped to it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(model.parameters()).device
    _create_optimizer_states(optimizer, parameters)
    tally = FlopTally()
    log = StorageLog(lambda place: place.type == device.type, tally)
    weights = log.numbers([*model.parameters(), *model.buffers()])
    states = log.numbers(_state_tensors(optimizer))
    for batch in batches:
        log.numbers(batch.values())
    start = len(log.events)
    passes = []
    for batch in batches:
        tally.flops = 0
        with log:
            activations, forward_end = _forward_backward(model, batch, log, autocast)
        passes.append(_Pass(activations, forward_end, len(log.events), tally.flops))
    gradients = log.numbers(parameter.grad for parameter in parameters if parameter.grad is not None)
    with log:
        if max_grad_norm is not None:
            clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    kinds = {"weights": weights, "optimizer": states, "gradients": gradients}
    return _account(log, kinds, passes, start, _kernel(tally.attention, model))


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass: storages kept between the two, ends of both in the log, operations."""

    activations: set[int]
    forward_end: int
    backward_end: int
    flops: int


def _forward_backward(
    model: nn.Module, batch: dict[str, torch.Tensor], log: StorageLog, autocast: torch.dtype | None
) -> tuple[set[int], int]:
    """Runs one pass; returns the storages that the forward pass left, and where in the log it ended."""
    before = log.alive
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        loss = model(**batch).loss
    activations, forward_end = log.alive - before, len(log.events)
    loss.backward()
    return activations, forward_end


def _create_optimizer_states(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _account(log: StorageLog, kinds: dict[str, set[int]], passes: list[_Pass], start: int, kernel: str) -> StepCount:
    """Reads the log: what each kind comes to, and what was there at the highest moment."""
    sizes: dict[int, int] = {}
    for number, change in log.events:
        sizes.setdefault(number, change)
    totals = {kind: sum(sizes[number] for number in numbers) for kind, numbers in kinds.items()}
    course = tuple(accumulate(change for _, change in log.events))
    moment = max(range(start, len(course)), key=course.__getitem__)
    kind_of = {number: "activations" for one in passes for number in one.activations}
    # Gradients and states outlive the pass that they were made in.
    kind_of |= {number: kind for kind, numbers in reversed(kinds.items()) for number in numbers}
    at_peak = dict.fromkeys(KINDS, 0)
    for number, change in log.events[: moment + 1]:
        at_peak[kind_of.get(number, "temporaries")] += change
    return StepCount(
        **totals,
        activations=max(sum(sizes[number] for number in one.activations) for one in passes),
        at_peak=at_peak,
        peak=course[moment],
        peak_phase=_phase(moment, passes),
        kernel=kernel,
        flops=tuple(one.flops for one in passes),
        course=course[start:],
    )


def _phase(moment: int, passes: list[_Pass]) -> str:
    for one in passes:
        if moment < one.forward_end:
            return "forward"
        if moment < one.backward_end:
            return "backward"
    return "optimizer"


def _kernel(operators: set[str], model: nn.Module) -> str:
    for operator, name in _KERNELS.items():
        if operator in operators:
            return name
    eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    return "eager" if eager else "math"
