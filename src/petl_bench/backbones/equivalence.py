"""Tries two ways to run a model against each other: with what is trained a little off, their outputs must agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Of the outputs; the sums are the same but for their order.
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}

_LOW_PRECISION_TOLERANCE = {"rtol": 1e-1, "atol": 1e-1}

# Added to what is trained while a model is tried: adapters that start at zero would hide what they read.
_NOISE = 0.05

_log = logging.getLogger(__name__)


@contextmanager
def perturbed(model: nn.Module) -> Iterator[None]:
    """Within it all that is trained is a little off."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [parameter.detach().clone() for parameter in trained]
    try:
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(_NOISE * torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, values, strict=True):
                parameter.copy_(value)


def output_or_none(call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """What it returns; None where the model, as it is now, cannot do it."""
    try:
        return call()
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.debug("the model fails while it is tried", exc_info=error)
        return None


def outputs_match(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two outputs are there, and the same but for the order of sums."""
    if first is None or second is None:
        return False
    tolerance = _TOLERANCE if first.dtype == torch.float32 == second.dtype else _LOW_PRECISION_TOLERANCE
    same_shape = first.shape == second.shape
    return same_shape and torch.allclose(first.float(), second.float(), **tolerance, equal_nan=True)
