"""Counts floating-point operations with the formulas of torch's own counter.

Matrix products, convolutions and fused attention are counted, with a multiply-add as two operations. Gathers, norms and
activation functions are not. `torch.utils.flop_counter.FlopCounterMode` gives the same numbers, but it also attributes
them to modules, which takes far longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from petl_bench.estimate.tensor_modes import OperatorListener

_aten = torch.ops.aten

# The CPU's fused attention is not in torch's registry. It computes the same products as the other fused kernels.
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
