"""Memory of one update by kind, and its operations, counted storage by storage.

The update is one in its steady state: optimizer states are there already. It is counted on real CPU and CUDA tensors,
and, where `as_fake_cpu` has prepared the model, on tensors without memory: the bytes are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from petl_bench.estimate.flops import FlopTally

OnOperator = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class StorageLog(TorchDispatchMode):
    """While active, logs each new storage that an operator returns, and when it is freed.

    Views share a storage, which counts once. What a kernel allocates and frees inside itself is not seen.

    Args:
        counts: Whether storages on this device are logged.
        on_operator: Told of every operator that ran, with its arguments and what it returned.
    """

    def __init__(self, counts: Callable[[torch.device], bool], on_operator: OnOperator) -> None:
        super().__init__()
        self._counts, self._on_operator = counts, on_operator
        # (storage's number, bytes): positive where it was born, negative where it died.
        self.events: list[tuple[int, int]] = []
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._next = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would wrap each call for the sake of torch.compile, which takes longer than the call.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, then notes what it returned."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._on_operator(func, args, kwargs, result)
        self._note_result(result)
        return result

    def _note_result(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self.number(result)
        elif isinstance(result, list | tuple):
            for item in result:
                self._note_result(item)

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor's storage, which is logged as born if it was not known; None if it does not count."""
        if not self._counts(tensor.device):
            return None
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._alive.get(address)
        if known is not None:
            return known[0]
        number, size = self._next, storage.nbytes()
        self._next += 1

        def died(_: object) -> None:
            self.events.append((number, -size))
            self._alive.pop(address, None)

        self._alive[address] = (number, weakref.ref(storage, died))
        self.events.append((number, size))
        return number

    def numbers(self, tensors: Iterable[torch.Tensor]) -> set[int]:
        """Numbers of these tensors' storages, each once."""
        return {number for number in map(self.number, tensors) if number is not None}

    @property
    def alive(self) -> set[int]:
        """Numbers of the storages that live now."""
        return {number for number, _ in self._alive.values()}


_SCALAR = torch.ops.aten._local_scalar_dense.default

_LAYER_NORM = torch.ops.aten.native_layer_norm.default


class FakeCpuMode(FakeTensorMode):
    """The mode within which a posed model, and whatever meets it, is used."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator on tensors without memory."""
        if func is _SCALAR and args[0].dtype == torch.bool:
            # What content would decide: is every token real, does a coin fall this way? The costlier answer is yes.
            return True
        result: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if func is _LAYER_NORM and args[2] is not None and args[2].dtype != args[0].dtype:
            # The CPU's kernel keeps statistics in the weight's precision; torch's stand-in, in the input's.
            output, *statistics = result
            result = (output, *(statistic.to(args[2].dtype) for statistic in statistics))
        return result


def as_fake_cpu(model: nn.Module) -> FakeCpuMode:
    """Turns a model on the meta device into one whose tensors still have no memory but say they are on the CPU.

    Autocast, the choice of an attention kernel and dropout go by the device; on the meta device they would differ from
    a real run. Ties are kept.

    Args:
        model: Changed in place.
    """
    mode = FakeCpuMode(allow_non_fake_inputs=True)
    # The originals are kept until the end: their ids must not be given to others.
    fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            fake: torch.Tensor = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            fakes[id(tensor)] = (fake, tensor)
        return fakes[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = faked(tensor)  # type: ignore[assignment]
    return mode


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
    timeline: tuple[int, ...]


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
    timeline = tuple(accumulate(change for _, change in log.events))
    moment = max(range(start, len(timeline)), key=timeline.__getitem__)
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
        peak=timeline[moment],
        peak_phase=_phase(moment, passes),
        kernel=kernel,
        flops=tuple(one.flops for one in passes),
        timeline=timeline[start:],
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
