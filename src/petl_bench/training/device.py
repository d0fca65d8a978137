"""Device, precision and process group of a run, and process-wide settings that make the CPU faster."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn

from petl_bench.backbones.anatomy import Anatomy, classifier_of
from petl_bench.errors import DivergedError, OutOfMemoryError, RequestError, RunError
from petl_bench.process import in_process_group, is_main_process
from petl_bench.training import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def resolved_device(train: TrainConfig) -> str:
    """Returns the device that `train.device=auto` means on this machine: cuda if torch finds a device, else cpu."""
    if train.device != "auto":
        return train.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolved_precision(train: TrainConfig) -> str:
    """Returns the precision that `train.precision=auto` stands for here: bf16 on a GPU that supports it, else fp32."""
    if train.precision != "auto":
        return train.precision
    on_cuda = train.device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_cuda and _has_bf16() else "fp32"


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Returns the accelerator for the requested device and precision.

    Raises:
        RequestError: If the machine does not have the device, or the device does not support the precision.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
    from accelerate.state import AcceleratorState

    if train.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("train.device=cuda, but torch sees no CUDA device: use train.device=cpu.")
    on_cuda = resolved_device(train) == "cuda"
    if train.precision == "fp16" and not on_cuda:
        raise RequestError("train.precision=fp16 needs a CUDA device: use bf16 or fp32.")
    if train.precision == "bf16" and on_cuda and not (train.emulate_bf16 or _has_bf16()):
        raise RequestError(
            "train.precision=bf16, but the GPU has no instructions for it: use fp16 or fp32, or, which is slow, "
            "train.emulate_bf16=true."
        )
    # One process may make many runs, each with its own device and precision. Process groups must stay.
    alone = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    precision = resolved_precision(train)
    # The main process measures and saves for longer than torch's ten minutes while the others wait for the next run.
    patience = [InitProcessGroupKwargs(timeout=timedelta(hours=2))] if in_process_group() else None
    with nullcontext() if in_process_group() else _hidden(_LAUNCHER_VARIABLES):
        # Without `cpu=True` Accelerate overlooks that torchrun started several processes on a machine without a GPU.
        mixed_precision = {"fp32": "no"}.get(precision, precision)
        return Accelerator(mixed_precision=mixed_precision, cpu=not on_cuda, kwargs_handlers=patience)


# Accelerate takes each of these as a sign of a process group, and then waits for its other processes.
_LAUNCHER_VARIABLES = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Removes environment variables within the context."""
    values = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def decided_by_main(decide: Callable[[], T]) -> T:
    """Returns to every process of the group what the first one decides, or raises the first one's error.

    So files that only the first process sees, or its clock, have the same effect in all processes. Without a process
    group, `decide` is simply called.

    Args:
        decide: Called in the first process alone; the accelerator must have been made if there is a group.
    """
    if not in_process_group():
        return decide()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = decide()
        except Exception as error:
            outcome[1] = error
    value, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]


def wait_for_group() -> None:
    """Waits until every process of the group is here; does nothing without one."""
    if in_process_group():
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def first_failure(failure: BaseException, run: str) -> BaseException:
    """The failure with which a run ended in the first process of the group that failed.

    When one process ends, the launcher and the missing answers end the others, which cannot tell the reason.

    Args:
        failure: This process's own failure.
        run: The run's name, the same in every process.

    Returns:
        The first failure, which names its process; this process's own if no other failed before or none can be asked.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return failure
    # An empty value asks without reporting a failure: a signal that ends every process says nothing about this run.
    own = ""
    if isinstance(failure, RunError):
        own = json.dumps([failure.status, distributed.get_rank(), str(failure)])
    try:
        first = distributed.distributed_c10d._get_default_store().compare_set(f"petl_bench/{run}", "", own).decode()
    except (RuntimeError, ValueError):  # the process that keeps the store is gone
        return failure
    if first in ("", own):
        return failure
    status, rank, message = json.loads(first)
    if message == str(failure):  # a loss that diverged, which all processes see
        return failure
    kinds = {kind.status: kind for kind in (RunError, OutOfMemoryError, DivergedError)}
    return kinds[status](f"Process {rank} of {distributed.get_world_size()}: {message}")


def others_may_hang() -> bool:
    """Whether processes that wait for one that failed may never end by themselves: NCCL waits inside CUDA calls."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl"


def compile_layers(model: nn.Module, anatomy: Anatomy, num_frozen: int) -> None:
    """Compiles each layer that every update computes, for rows of any length.

    Layers are compiled one by one: they are alike, so all but the first are found in the compiler's cache.

    Args:
        model: The adapted model, unwrapped.
        anatomy: The anatomy of its architecture.
        num_frozen: Number of frozen layers whose features are computed once.
    """
    classifier = classifier_of(model)
    for layer in anatomy.get_layers(classifier)[num_frozen:]:
        layer.compile(dynamic=True)


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Makes glibc keep freed memory within the context; on leaving it, the memory is returned to the system.

    By default glibc maps each large tensor anew, and the system clears its pages first. With another C library the
    context does nothing.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)  # type: ignore[union-attr]
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # type: ignore[union-attr]
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)  # type: ignore[union-attr]
        library.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)  # type: ignore[union-attr]
        library.malloc_trim(0)  # type: ignore[union-attr]


_BITS = 16


@contextmanager
def fast_dropout(device: torch.device) -> Iterator[None]:
    """Replaces torch's CPU kernel for Bernoulli draws, which all kinds of dropout use, within the context.

    The kernel takes 16 random bits for each draw: four draws share one 64-bit number of torch's generator. The same
    seed gives the same masks for any number of threads. Probabilities are rounded to multiples of 2^-16.

    Args:
        device: The model's device; the context does nothing unless it is the CPU.
    """
    if device.type != "cpu":
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns that a kernel is replaced.
        warnings.simplefilter("ignore")
        library.impl("bernoulli_.float", _bernoulli, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _bernoulli(target: torch.Tensor, p: float = 0.5, generator: torch.Generator | None = None) -> torch.Tensor:
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    threshold = round(p * 2**_BITS)
    if threshold == 2**_BITS:
        # A probability of 1 has no 16-bit threshold.
        return target.fill_(1)
    count = target.numel()
    numbers = torch.empty(-(-count * _BITS // 64), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    draws = numbers.view(torch.int16)[:count].view(target.shape)
    return target.copy_(draws < threshold - 2 ** (_BITS - 1))
