"""Floating-point operations by the formulas of torch's counter.

Counted are matrix products, convolutions and fused attention, a multiply-add as two; not gathers, norms or activations.
`torch.utils.flop_counter.FlopCounterMode` finds the same, but watches every module too, which takes far longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopTally:
    """Adds up the operations of the operators that it is told of.

    Attributes:
        flops: The sum.
        attention: Names of the fused attention operators that ran.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.attention: set[str] = set()

    def __call__(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Adds one operator that ran."""
        packet = operator._overloadpacket
        formula = _FORMULAS.get(packet)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
            if "attention" in packet.__name__:
                self.attention.add(packet.__name__)


class _Watch(TorchDispatchMode):
    def __init__(self, tally: FlopTally) -> None:
        super().__init__()
        self._tally = tally

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._tally(func, args, kwargs or {}, result)
        return result


def count_flops(call: Callable[[], Any]) -> int:
    """Operations of one call."""
    tally = FlopTally()
    with _Watch(tally):
        call()
    return tally.flops


_aten = torch.ops.aten

# The CPU's fused attention is not in torch's registry; it multiplies what the others multiply.
_FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
