"""A model without memory that behaves as one on the CPU would."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_SCALAR = torch.ops.aten._local_scalar_dense.default
_LAYER_NORM = torch.ops.aten.native_layer_norm.default


class PoseAsCpu(FakeTensorMode):
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


def posed_as_cpu(model: nn.Module) -> PoseAsCpu:
    """Turns a model on the meta device into one whose tensors still have no memory but say they are on the CPU.

    Autocast, the choice of an attention kernel and dropout go by the device; on the meta device they would differ from
    a real run. Ties are kept.

    Args:
        model: Changed in place.
    """
    mode = PoseAsCpu(allow_non_fake_inputs=True)
    # The originals are kept until the end: their ids must not be given to others.
    posed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def pose(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in posed:
            fake: torch.Tensor = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            posed[id(tensor)] = (fake, tensor)
        return posed[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = pose(tensor)  # type: ignore[assignment]
    return mode
