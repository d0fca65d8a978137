"""Lets `output_hidden_states` see what a wrapped layer puts out.

transformers 5 records hidden states through hooks that it puts on the modules of the layer's class, once, at the first
forward that asks. On a wrapped layer they would record what goes on inside the wrapper. So the hooks are moved outside.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks


def take_capture(model: nn.Module, layer: nn.Module, wrapper: nn.Module) -> None:
    """Moves the hooks that record hidden states from a layer of `model` to its wrapper."""
    owners = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(inner is layer for inner in module.modules())
    ]
    # The innermost, which is the encoder: it installs them, and another one would install them a second time.
    if owners:
        maybe_install_capturing_hooks(owners[-1])
    _move(layer, wrapper)


def give_capture_back(wrapper: nn.Module, layer: nn.Module) -> None:
    """Undoes `take_capture`."""
    _move(wrapper, layer)


def _move(source: nn.Module, target: nn.Module) -> None:
    for key, hook in list(source._forward_hooks.items()):
        if _records(hook):
            del source._forward_hooks[key]
            target.register_forward_hook(hook)


def _records(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == maybe_install_capturing_hooks.__module__
