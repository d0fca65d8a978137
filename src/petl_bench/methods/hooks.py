"""What PEFT tuners need around a training: ranks that are reallocated while it runs, merging at its end."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from petl_bench.records.schema import HistoryEntry

# Scores of AdaLoRA's rank allocator, each a dict of tensors by parameter name.
_ALLOCATOR_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

_log = logging.getLogger(__name__)


class RankAllocation:
    """Callback of the training loop for tuners that reallocate ranks, such as AdaLoRA; does nothing for the others.

    PEFT keeps the ranks in the adapter's config and the scores they follow from in its allocator, so neither is among
    the model's parameters: a checkpoint holds them as extra state.

    Args:
        model: The adapted model, unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        tuner = getattr(model, "base_model", None)
        self._reallocate = getattr(tuner, "update_and_allocate", None)
        self._allocator = getattr(tuner, "rankallocator", None)
        self._best_ranks: dict[str, Any] = {}

    def on_resume(self, progress: Any) -> None:
        """Does nothing: `load_state_dict` has restored the ranks."""

    def on_update(self, step: int) -> None:
        """Lets the tuner reallocate its ranks; it reads the gradients."""
        if self._reallocate is not None:
            self._reallocate(step)

    def on_warm(self) -> None:
        """Does nothing."""

    def on_evaluation(self, entry: HistoryEntry, is_best: bool) -> None:
        """Keeps the ranks that belong to the best weights."""
        if is_best:
            self._best_ranks = self._ranks_in_use()

    def finish(self, selection: str) -> None:
        """Sets the ranks that the adapter is saved with.

        Args:
            selection: `best` or `last`: whose ranks they are.
        """
        self._set_ranks(self._best_ranks if selection == "best" else self._ranks_in_use())

    def state_dict(self) -> dict[str, Any]:
        """Returns the ranks, the best ranks, and the allocator's scores."""
        scores = (
            {name: getattr(self._allocator, name) for name in _ALLOCATOR_SCORES} if self._allocator is not None else {}
        )
        return {"ranks": self._ranks(), "best_ranks": self._best_ranks, "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._set_ranks(state["ranks"])
        self._best_ranks = state["best_ranks"]
        if not state["scores"]:
            return
        parameters = dict(self._model.base_model.model.named_parameters())  # type: ignore[union-attr]
        for name, scores in state["scores"].items():
            on_device = {parameter: tensor.to(parameters[parameter].device) for parameter, tensor in scores.items()}
            setattr(self._allocator, name, on_device)

    def _ranks(self) -> dict[str, Any]:
        configs = getattr(self._model, "peft_config", {})
        return {
            name: copy.deepcopy(config.rank_pattern)
            for name, config in configs.items()
            if hasattr(config, "rank_pattern")
        }

    def _ranks_in_use(self) -> dict[str, Any]:
        """The ranks whose singular values are not zero.

        Between two reallocations the optimizer moves the values that the last one set to zero, and the model computes
        with them: an adapter without them would be another model.
        """
        found = self._ranks()
        for pattern in found.values():
            for name in pattern or {}:
                singular_values = self._model.base_model.model.get_parameter(name)  # type: ignore[union-attr, operator]
                pattern[name] = (singular_values.detach() != 0).view(-1).tolist()
        return found

    def _set_ranks(self, ranks: dict[str, Any]) -> None:
        for name, pattern in ranks.items():
            self._model.peft_config[name].rank_pattern = pattern  # type: ignore[union-attr, index]


def merged(model: nn.Module) -> tuple[nn.Module, bool]:
    """Merges the adapter into the weights if the method can.

    Args:
        model: The adapted model; changed in place.

    Returns:
        The plain model and True; or the model as it was, which computes the same as before, and False.
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
