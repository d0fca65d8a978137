"""Modes of torch that watch operators and storages, and that run a model on fake tensors as a device would run it.

All private interfaces of torch that an estimate needs are used in this file alone: `UntypedStorage._cdata`,
`TorchDispatchMode._should_skip_dynamo`, `FakeTensor`, `FakeTensorMode`, `_C.DisableTorchFunction`, `_safe_softmax` and
`flop_registry`; and of transformers, `_gradient_checkpointing_func`.
`tests/estimate/test_torch_interfaces.py` says what to change here when torch changes one of them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
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
        # Asking a fake tensor for its `device` would dispatch an operator.
        if not self._is_logged(tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device):
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


_aten = torch.ops.aten
_SCALAR = _aten._local_scalar_dense.default
_LAYER_NORM = _aten.native_layer_norm.default
_MSE_LOSS = _aten.mse_loss.default


# Functions used by encoders and methods that CUDA's autocast computes in fp32 and the CPU's does not
# (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32").
_FP32_ON_CUDA = {
    *(F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.softplus),
    *(F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax, F.cosine_similarity, torch.cosine_similarity),
    *(torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log),
    *(torch.rsqrt, torch.Tensor.rsqrt, torch.sum, torch.Tensor.sum, torch.cumsum, torch.Tensor.cumsum),
    *(torch.norm, torch.Tensor.norm),
}


class CudaOperators(TorchFunctionMode):
    """While active, fake CPU tensors take the operators that tensors on a CUDA device would take.

    A build of torch without CUDA cannot run operators on fake CUDA tensors, so the differences are written down here:
    dropout keeps a mask of one byte per element, attention that returns no weights is fused even with dropout, and
    autocast computes norms and softmaxes in fp32.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch, or what replaces it on CUDA."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func in _FP32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(_in_fp32(value) for value in args)
            kwargs = {name: _in_fp32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _in_fp32(value: Any) -> Any:
    is_lower = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_lower else value


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or inplace or not 0 < p < 1:
        return F.dropout(input, p, training, inplace)
    output, _mask = torch.native_dropout(input, p, True)
    return output


# Alignment, in bytes, at which the kernels for masks and for fp32 read rows of heads and of masks.
_HEAD_ALIGNMENT, _MASK_ALIGNMENT = 16, 32


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Calls the attention kernel that torch chooses on a CUDA device, as its `sdp_utils.cpp` does.

    In lower precision and without a mask this is flash, else the memory-efficient one if it can read the heads. cuDNN's
    kernel, which torch prefers on the newest devices, allocates the same tensors.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is None and query.dtype != torch.float32:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if query.shape[-1] * query.element_size() % _HEAD_ALIGNMENT:
        with torch.autocast("cpu", enabled=False):
            return _unfused_attention(query, key, value, attn_mask, dropout_p, scale)
    if attn_mask is not None:
        attn_mask = _as_bias(attn_mask, query.dtype)
        missing = -attn_mask.shape[-1] % (_MASK_ALIGNMENT // query.element_size())
        if missing:
            attn_mask = F.pad(attn_mask, (0, missing))[..., :-missing]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    keeps_logsumexp = any(tensor.requires_grad for tensor in (query, key, value))
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keeps_logsumexp, dropout_p, is_causal, scale=scale
    )[0]


def _unfused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    scale: float | None,
) -> torch.Tensor:
    """Attention in separate operators, as in `_scaled_dot_product_attention_math`; always computed in fp32."""
    dtype, factor = query.dtype, math.sqrt(query.shape[-1] ** -0.5 if scale is None else scale)
    bias = None if mask is None else _as_bias(mask, dtype)
    query, key, value = query.float(), key.float(), value.float()
    scores = (query * factor) @ (key.transpose(-2, -1) * factor)
    if bias is not None:
        scores.add_(bias)
    return (_dropout(torch._safe_softmax(scores, -1), dropout_p) @ value).to(dtype)


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask in the form that is added to the scores."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)
    return mask.to(dtype)


class FakeDeviceMode(FakeTensorMode):
    """Torch's fake tensor mode, corrected so that fake CPU tensors show what kernels of the given device allocate.

    A model from `as_fake`, and every tensor given to it, must be used within this mode.

    Args:
        device_type: "cpu" or "cuda".
    """

    def __init__(self, device_type: str) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._device_type = device_type

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator on fake tensors."""
        if func is _SCALAR and args[0].dtype == torch.bool:
            # A condition depends on values, which fake tensors do not have, for example whether a mask is all ones or
            # whether a module is dropped at random. True leads to the more expensive branch.
            return True
        # Some of torch's fake kernels call torch functions themselves, which are not the model's calls.
        with torch._C.DisableTorchFunction():
            result: Any = self.dispatch(func, types, args, kwargs or {})
        if func is _MSE_LOSS and result.dim() == 0:
            # The kernels reduce a tensor of all differences to the mean, whose storage stays as large as before.
            result = args[0].new_empty(args[0].numel())[0]
        is_mixed = func is _LAYER_NORM and args[2] is not None and args[2].dtype != args[0].dtype
        if is_mixed and self._device_type == "cpu":
            # The CPU kernel saves the mean and the standard deviation in the weight's precision, the fake one in the
            # input's.
            output, *statistics = result
            result = (output, *(statistic.to(args[2].dtype) for statistic in statistics))
        return result


class _FakeCuda(AbstractContextManager[None]):
    """A fake tensor mode together with the operators of CUDA; it can be entered repeatedly."""

    def __init__(self, mode: FakeDeviceMode) -> None:
        self._modes = mode, CudaOperators()

    def __enter__(self) -> None:
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def as_fake(model: nn.Module, device_type: str) -> AbstractContextManager[Any]:
    """Replaces the parameters and buffers of a model by fake tensors.

    Fake tensors have no memory but report the CPU as their device. Autocast, dropout and the choice of an attention
    kernel depend on the device, so a model on the meta device would not run the operators of a real run. Tied weights
    stay tied.

    Args:
        model: On the meta device or on any other one. It is changed in place.
        device_type: "cpu", or "cuda" to run the operators of a CUDA device (`CudaOperators`); such a device is not
            needed.

    Returns:
        The context within which the model must be used.
    """
    mode = FakeDeviceMode(device_type)
    # Keyed by the id of the original, which is kept alive so that no other tensor gets the same id.
    replaced: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor that replaces a parameter or buffer; the same one for tied weights."""
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
    if device_type == "cpu":
        return mode
    for module in model.modules():
        if (checkpoint := getattr(module, "_gradient_checkpointing_func", None)) is not None:
            # Autograd leaves torch function modes, so what is computed again would take the operators of a CPU.
            module._gradient_checkpointing_func = partial(  # type: ignore[assignment]
                checkpoint, context_fn=lambda: (nullcontext(), CudaOperators())
            )
    return _FakeCuda(mode)


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
