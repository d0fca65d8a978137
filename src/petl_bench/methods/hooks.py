"""What a method does around training: a call after each update, extra state, merging at the end."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


_ALLOCATOR = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def after_update_hook(model: nn.Module) -> Callable[[int], None] | None:
    """What to call after each update with its number (from 0), gradients still there; AdaLoRA reallocates ranks so."""
    return getattr(getattr(model, "base_model", None), "update_and_allocate", None)


class ExtraState:
    """State of a method beside its parameters: AdaLoRA's ranks, which PEFT keeps in the config, and its scores.

    Args:
        model: The adapted model, unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._best: dict[str, Any] = {}

    def save_best(self) -> None:
        """Remembers what belongs to the weights of now."""
        self._best = self._ranks()

    def restore_best(self) -> None:
        """Puts back what `save_best` remembered last."""
        self._set_ranks(self._best)

    def take(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        allocator = self._allocator()
        scores = {name: getattr(allocator, name) for name in _ALLOCATOR} if allocator is not None else {}
        return {"ranks": self._ranks(), "best": self._best, "scores": scores}

    def put(self, state: dict[str, Any]) -> None:
        """Puts back what `take` gave."""
        self._set_ranks(state["ranks"])
        self._best = state["best"]
        for name, scores in state["scores"].items():
            own = dict(self._model.base_model.model.named_parameters())  # type: ignore[union-attr]
            moved = {parameter: tensor.to(own[parameter].device) for parameter, tensor in scores.items()}
            setattr(self._allocator(), name, moved)

    def _allocator(self) -> Any:
        return getattr(getattr(self._model, "base_model", None), "rankallocator", None)

    def _ranks(self) -> dict[str, Any]:
        configs = getattr(self._model, "peft_config", {})
        return {
            name: copy.deepcopy(config.rank_pattern)
            for name, config in configs.items()
            if hasattr(config, "rank_pattern")
        }

    def _set_ranks(self, ranks: dict[str, Any]) -> None:
        for name, pattern in ranks.items():
            self._model.peft_config[name].rank_pattern = pattern  # type: ignore[union-attr, index]


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
