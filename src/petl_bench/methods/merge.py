"""Folds an adapter into the weights it adapts, where the method can."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


def merged(model: nn.Module) -> tuple[nn.Module, bool]:
    """The plain model with its adapter merged, and True; else the model, which computes the same as before, and False.

    Args:
        model: Changed in place.
    """
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model, False
    try:
        plain: nn.Module = merge()
    except (ValueError, NotImplementedError, AttributeError) as error:
        _log.debug("not merged: %s", error)
        return model, False
    return plain, True
