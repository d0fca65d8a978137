"""Finds the norms of an encoder, and has PEFT train them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.tuner import LayerwiseConfig


def norm_modules(model: nn.Module, anatomy: Anatomy, layers: list[int] | None) -> list[str]:
    """Names of the encoder's norms that have parameters, without the encoder's own name in front.

    Args:
        model: The model, adapted or not.
        anatomy: Of its architecture.
        layers: 0-based layers whose norms are wanted; None: all norms, those outside the layers included.
    """
    found = []
    inside = f"{anatomy.encoder}." if hasattr(model, anatomy.encoder) else ""
    for name, module in model.named_modules():
        # PEFT keeps copies of the modules it trains whole inside its wrappers.
        plain = name.split(".original_module")[0].split(".modules_to_save")[0].replace(".base_layer", "")
        if "norm" not in type(module).__name__.lower() or not plain.startswith(inside):
            continue
        if next(module.parameters(), None) is None:
            continue
        number = anatomy.layer_number(plain)
        if layers is None or (number is not None and number - 1 in layers):
            found.append(plain.removeprefix(inside))
    return list(dict.fromkeys(found))


def train_whole(config: LayerwiseConfig, modules: Iterable[str]) -> None:
    """Adds modules to those that PEFT trains and saves whole."""
    config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *modules]))
