"""Measures the memory of one update by kind, storage by storage, together with its operations.

The update is one of the steady state: the optimizer's states exist already. It runs on real tensors, or on the fake
ones of a model from `as_fake`, which have no memory but give the same numbers of bytes. The approach is that of
`torch.distributed._tools.MemTracker`, which the tests compare it with; unlike MemTracker it supports frozen parameters
and gradient accumulation, and it keeps the timeline, from which the largest batch that fits a budget is calculated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from petl_bench.backbones.load import attention_implementation
from petl_bench.estimate.tensor_modes import FlopCounter, StorageLog
from petl_bench.records.schema import MEMORY_KINDS

# Names of the attention kernels, by the fused operator that shows that the kernel was used.
_KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": "flash (cpu)",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
}


@dataclass(frozen=True)
class UpdateMemory:
    """Memory and operations of one update; all sizes are in bytes.

    Attributes:
        weights: Parameters and buffers; tied ones are counted once.
        gradients: All gradients at the end of the last backward pass.
        optimizer: The optimizer's states.
        activations: What the forward pass keeps for the backward pass. With gradient accumulation, that of the largest
            pass.
        at_peak: Bytes of each kind at the moment of the peak. "temporaries" is everything that is of no other kind,
            including the batch. The values add up to `peak`.
        peak: The largest number of bytes that were allocated at once.
        peak_phase: The phase in which the peak occurred: forward, backward or optimizer.
        kernel: The attention kernel that was used.
        flops: Floating-point operations of each pass, forward and backward together.
        timeline: Bytes allocated after each event of the update, in order.
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
    timeline: tuple[int, ...]


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass.

    Attributes:
        activations: Ids of the storages that the forward pass left for the backward pass.
        forward_end: Number of events in the log at the end of the forward pass.
        backward_end: Number of events in the log at the end of the backward pass.
        flops: Floating-point operations.
    """

    activations: set[int]
    forward_end: int
    backward_end: int
    flops: int


def measure_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    autocast: torch.dtype | None = None,
    max_grad_norm: float | None = None,
) -> UpdateMemory:
    """Performs two updates and measures the second one.

    The updates change the model. To keep it as it is, pass a copy, or an optimizer whose learning rate and weight decay
    are 0.

    Args:
        model: The adapted model, in training mode. A model from `as_fake` must be passed within its mode.
        optimizer: Over the trainable parameters of the model.
        batches: Arguments of the model for each pass of the update, labels included: several with gradient
            accumulation. Passes after the second one add nothing unless their batch has another size.
        autocast: The lower precision of the forward pass, or None for that of the weights.
        max_grad_norm: The norm that gradients are clipped to, or None for no clipping.

    Returns:
        Memory and operations of the second update.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The first update has gradients of zeros. It only makes the optimizer allocate its states.
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    device = next(model.parameters()).device
    counter = FlopCounter()
    log = StorageLog(lambda storage_device: storage_device.type == device.type, counter)
    weights = log.add_all([*model.parameters(), *model.buffers()])
    states = log.add_all(
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    )
    for batch in batches:
        log.add_all(batch.values())
    start = len(log.events)
    passes = []
    for batch in batches:
        counter.flops = 0
        with log:
            activations, forward_end = _forward_backward(model, batch, log, autocast)
        passes.append(_Pass(activations, forward_end, len(log.events), counter.flops))
    gradients = log.add_all(parameter.grad for parameter in trainable if parameter.grad is not None)
    with log:
        if max_grad_norm is not None:
            clip_grad_norm_(trainable, max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    kinds = {"weights": weights, "optimizer": states, "gradients": gradients}
    return _summarize(log.events, kinds, passes, start, _kernel_name(counter.attention, model))


def _forward_backward(
    model: nn.Module, batch: dict[str, torch.Tensor], log: StorageLog, autocast: torch.dtype | None
) -> tuple[set[int], int]:
    """Runs one pass within the log.

    The loss is freed on return: a caller that kept it would keep it alive during the next pass.

    Args:
        model: The adapted model.
        batch: Arguments of its forward pass.
        log: The active log.
        autocast: The lower precision of the forward pass, or None.

    Returns:
        Ids of the storages that the forward pass left, and the number of events at its end.
    """
    alive_before = log.alive
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        loss = model(**batch).loss
    activations, forward_end = log.alive - alive_before, len(log.events)
    loss.backward()
    return activations, forward_end


def _summarize(
    events: list[tuple[int, int]], kinds: dict[str, set[int]], passes: list[_Pass], start: int, kernel: str
) -> UpdateMemory:
    """Adds up the events of an update by kind, and finds its peak.

    Args:
        events: Those of the `StorageLog`.
        kinds: Ids of the storages of weights, optimizer states and gradients.
        passes: The passes of the update.
        start: Number of events before the update, which are weights, optimizer states and batches.
        kernel: Name of the attention kernel.

    Returns:
        The summary.
    """
    sizes: dict[int, int] = {}
    for storage_id, change in events:
        # The first event of a storage is its allocation.
        sizes.setdefault(storage_id, change)
    timeline = list(accumulate(change for _, change in events))
    peak_moment = max(range(start, len(timeline)), key=timeline.__getitem__)

    kind_of = {storage_id: "activations" for pass_ in passes for storage_id in pass_.activations}
    # Gradients and optimizer states may be allocated during a forward pass, but they are kept longer than activations.
    kind_of |= {storage_id: kind for kind, ids in reversed(kinds.items()) for storage_id in ids}
    at_peak = dict.fromkeys(MEMORY_KINDS, 0)
    for storage_id, change in events[: peak_moment + 1]:
        at_peak[kind_of.get(storage_id, "temporaries")] += change

    ends = [end for pass_ in passes for end in ((pass_.forward_end, "forward"), (pass_.backward_end, "backward"))]
    return UpdateMemory(
        **{kind: sum(sizes[storage_id] for storage_id in ids) for kind, ids in kinds.items()},
        activations=max(sum(sizes[storage_id] for storage_id in pass_.activations) for pass_ in passes),
        at_peak=at_peak,
        peak=timeline[peak_moment],
        peak_phase=next((phase for end, phase in ends if peak_moment < end), "optimizer"),
        kernel=kernel,
        flops=tuple(pass_.flops for pass_ in passes),
        timeline=tuple(timeline[start:]),
    )


def _kernel_name(attention_operators: set[str], model: nn.Module) -> str:
    for operator, name in _KERNELS.items():
        if operator in attention_operators:
            return name
    return "eager" if attention_implementation(getattr(model, "config", None)) == "eager" else "math"
