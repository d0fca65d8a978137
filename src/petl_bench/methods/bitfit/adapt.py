"""Chooses the biases that BitFit trains."""

from __future__ import annotations

import re

from torch import nn

from petl_bench.errors import RequestError
from petl_bench.methods.base import with_adapter
from petl_bench.methods.bitfit.config import BitFitConfig
from petl_bench.methods.bitfit.model import modules_with_bias
from petl_bench.methods.registry import AdaptContext, MethodConfig


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Trains every bias of the backbone; with a narrower layer plan, those of its layers.

    Raises:
        RequestError: where the architecture has no bias.
    """
    anatomy, plan = context.anatomy, context.plan
    names = [
        name
        for name in modules_with_bias(model)
        if not anatomy.in_head(name) and (plan.everything or anatomy.layer_number(name) in plan.adapted)
    ]
    if not names:
        raise RequestError(f"method=bitfit does not fit {anatomy.model_type}: this architecture has no biases.")
    pattern = "|".join(re.escape(name) for name in names)
    return with_adapter(model, BitFitConfig(target_modules=pattern), anatomy)
