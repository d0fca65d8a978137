"""Modes of torch that watch operators and storages, and one that turns a meta model into a model of fake CPU tensors.

All private interfaces of torch that an estimate needs are used in this file alone: `UntypedStorage._cdata`,
`TorchDispatchMode._should_skip_dynamo`, `FakeTensor`, `FakeTensorMode` and `flop_registry`.
`tests/estimate/test_torch_interfaces.py` says what to change here when torch changes one of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

OnOperator = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class OperatorListener(TorchDispatchMode):
    """While active, calls a function after every operator.

    Args:
        on_operator: Called with the operator, its positional and keyword arguments, and its result.
    """

    def __init__(self, on_operator: OnOperator) -> None:
        super().__init__()
        self._on_operator = on_operator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default torch wraps every dispatch so that torch.compile ignores it, which makes an estimate some 10 %
        # slower. Nothing is compiled here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator and reports it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._on_operator(func, args, kwargs, result)
        return result


class StorageLog(OperatorListener):
    """While active, logs the storages that operators allocate, and when they are freed.

    A storage is counted once, however many tensors are views of it. What a kernel allocates and frees internally is
    not visible here.

    Args:
        is_logged: Whether storages on a device are logged.
        on_operator: Called after every operator, as in `OperatorListener`.

    Attributes:
        events: `(storage id, bytes)` in order of time: positive when a storage is allocated, negative when it is
            freed. Ids are assigned by this log, from 0, and are never reused.
    """

    def __init__(self, is_logged: Callable[[torch.device], bool], on_operator: OnOperator) -> None:
        super().__init__(on_operator)
        self.events: list[tuple[int, int]] = []
        self._is_logged = is_logged
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._next_id = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, reports it, and logs the storages of its result."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._add_result(result)
        return result

    def _add_result(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self.add(result)
        elif isinstance(result, list | tuple):
            for item in result:
                self._add_result(item)

    def add(self, tensor: torch.Tensor) -> int | None:
        """Logs the storage of a tensor as allocated, unless it is in the log already.

        Returns:
            The storage's id, or None if storages on the tensor's device are not logged.
        """
        if not self._is_logged(tensor.device):
            return None
        storage = tensor.untyped_storage()
        # Fake tensors have no data pointer; the address of the storage itself identifies both kinds.
        address = storage._cdata
        if address in self._alive:
            return self._alive[address][0]
        storage_id, size = self._next_id, storage.nbytes()
        self._next_id += 1

        def on_free(_: object) -> None:
            self.events.append((storage_id, -size))
            self._alive.pop(address, None)

        self._alive[address] = (storage_id, weakref.ref(storage, on_free))
        self.events.append((storage_id, size))
        return storage_id

    def add_all(self, tensors: Iterable[torch.Tensor]) -> set[int]:
        """Logs the storages of several tensors, as `add` does, and returns their ids."""
        return {storage_id for storage_id in map(self.add, tensors) if storage_id is not None}

    @property
    def alive(self) -> set[int]:
        """Ids of the storages that are allocated now."""
        return {storage_id for storage_id, _ in self._alive.values()}


_SCALAR = torch.ops.aten._local_scalar_dense.default

_LAYER_NORM = torch.ops.aten.native_layer_norm.default


class FakeCpuMode(FakeTensorMode):
    """Torch's fake tensor mode, corrected where its results differ from those of the CPU kernels.

    A model from `as_fake_cpu`, and every tensor given to it, must be used within this mode.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator on fake tensors."""
        if func is _SCALAR and args[0].dtype == torch.bool:
            # A condition depends on values, which fake tensors do not have, for example whether a mask is all ones or
            # whether a module is dropped at random. True leads to the more expensive branch.
            return True
        result: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if func is _LAYER_NORM and args[2] is not None and args[2].dtype != args[0].dtype:
            # The CPU kernel saves the mean and the standard deviation in the weight's precision, the fake one in the
            # input's.
            output, *statistics = result
            result = (output, *(statistic.to(args[2].dtype) for statistic in statistics))
        return result


def as_fake_cpu(model: nn.Module) -> FakeCpuMode:
    """Replaces the parameters and buffers of a model by fake CPU tensors.

    Fake tensors have no memory but report the CPU as their device. Autocast, dropout and the choice of an attention
    kernel depend on the device, so a model on the meta device would not run the operators of a real run. Tied weights
    stay tied.

    Args:
        model: On the meta device or on any other one. It is changed in place.

    Returns:
        The mode within which the model must be used.
    """
    mode = FakeCpuMode(allow_non_fake_inputs=True)
    # Keyed by the id of the original, which is kept alive so that no other tensor gets the same id.
    replaced: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in replaced:
            new: torch.Tensor = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            replaced[id(tensor)] = (new, tensor)
        return replaced[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
    return mode


_aten = torch.ops.aten

# Matrix products, convolutions and fused attention are counted, with a multiply-add as two operations; gathers, norms
# and activation functions are not. `torch.utils.flop_counter.FlopCounterMode` gives the same numbers, but it also
# attributes them to modules, which takes far longer. The CPU's fused attention is not in torch's registry; it computes
# the same products as the other fused kernels.
_FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


class FlopCounter:
    """Adds up the operations of the operators that it is called with.

    Attributes:
        flops: The number of operations so far.
        attention: Names of the fused attention operators that ran.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.attention: set[str] = set()

    def __call__(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Adds the operations of one call of an operator.

        Args:
            operator: The overload that ran, as a dispatch mode receives it.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            result: What it returned.
        """
        packet = operator._overloadpacket
        formula = _FORMULAS.get(packet)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
            if "attention" in packet.__name__:
                self.attention.add(packet.__name__)


def count_flops(function: Callable[[], Any]) -> int:
    """Calls a function and returns the number of floating-point operations that it took."""
    counter = FlopCounter()
    with OperatorListener(counter):
        function()
    return counter.flops
