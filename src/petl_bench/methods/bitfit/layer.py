"""A module whose bias is replaced by a trained copy."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.func import functional_call


class BitFitLayer(nn.Module, BaseTunerLayer):
    """Runs the wrapped module with the active adapter's bias in place of its own.

    The copy starts at the pretrained bias, so the model is unchanged at the start. Works for every module that keeps
    its bias in `bias`: linear layers and norms alike.
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, inference_mode: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._pretrained_bias: torch.Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, inference_mode)

    def update_layer(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Adds the bias of another adapter."""
        self.bitfit_bias[adapter_name] = nn.Parameter(self._base_bias.detach().clone())
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def _base_bias(self) -> nn.Parameter:
        return cast("nn.Parameter", self.get_base_layer().bias)

    def _bias_of(self, adapters: list[str]) -> torch.Tensor | None:
        """The bias with these adapters active: one replaces the pretrained one, several add their changes to it."""
        biases = [self.bitfit_bias[name] for name in adapters if name in self.bitfit_bias]
        if len(biases) <= 1:
            return biases[0] if biases else None
        pretrained = self._base_bias if self._pretrained_bias is None else self._pretrained_bias
        return pretrained + sum(bias - pretrained for bias in biases)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes the trained bias into the wrapped module.

        Raises:
            ValueError: with `safe_merge`, where the trained bias is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bitfit_bias]
        bias = self._bias_of([*self.merged_adapters, *names])
        if not names or bias is None:
            return
        if safe_merge and not torch.isfinite(bias).all():
            raise ValueError(f"The bias of the adapters {names} is not finite.")
        base_bias = self._base_bias
        if self._pretrained_bias is None:
            self._pretrained_bias = base_bias.detach().clone()
        base_bias.data = bias.detach().clone().to(base_bias.dtype)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the pretrained bias back."""
        if self._pretrained_bias is not None:
            # The model may have moved in between.
            self._base_bias.data = self._pretrained_bias.to(self._base_bias.device, self._base_bias.dtype)
            self._pretrained_bias = None
            self.merged_adapters.clear()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The wrapped module's output, with its shape."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        bias = None if self.disable_adapters or self.merged else self._bias_of(self.active_adapters)
        if bias is None:
            return self.base_layer(x, *args, **kwargs)
        # The adapter may be kept in higher precision than the model.
        return functional_call(self.base_layer, {"bias": bias.to(self._base_bias.dtype)}, (x, *args), kwargs)
