"""The PEFT tuner of FL-tuning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner, LayerwiseConfig, TunerLayer
from petl_bench.methods.fl_tuning import FlTuningSettings
from petl_bench.methods.modules import initialise


@dataclass
class FlTuningConfig(FlTuningSettings, LayerwiseConfig):
    """Configuration of an `FlTuningModel`: the options of `FlTuningSettings` and the layers of `LayerwiseConfig`."""

    method = "fl_tuning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units < 1:
            raise ValueError(f"units={self.units} must be at least 1")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")


class WidenedProjection(TunerLayer):
    """What both projections share: the new linear maps by adapter, and how they merge."""

    adapter_layer_names = ("fl_tuning_units",)

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.fl_tuning_units = nn.ModuleDict({})
        self._unmerged: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def base(self) -> nn.Linear:
        """The wrapped projection."""
        return cast("nn.Linear", self.base_layer)

    def units_of(self, name: str) -> nn.Linear:
        """The new linear map of one adapter."""
        return cast("nn.Linear", self.fl_tuning_units[name])

    def widened(self, names: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the projection with these adapters' units built in."""
        raise NotImplementedError

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Makes the wrapped projection wider.

        Raises:
            ValueError: With `safe_merge`, if a weight is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.fl_tuning_units]
        if not names:
            return
        weight, bias = self.widened(names)
        if safe_merge and not all(torch.isfinite(tensor).all() for tensor in (weight, bias) if tensor is not None):
            raise ValueError(f"The weights of the adapters {names} are not finite.")
        if self._unmerged is None:
            self._unmerged = (self.base.weight, self.base.bias)
        self._set_weights(weight, bias)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Restores the wrapped projection's own weights."""
        if self._unmerged is not None:
            # The model may have moved in between.
            like = self.base.weight
            weight, bias = (None if old is None else old.to(like.device, like.dtype) for old in self._unmerged)
            self._set_weights(cast("torch.Tensor", weight), bias)
            self._unmerged = None
            self.merged_adapters.clear()

    def _set_weights(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        def frozen(tensor: torch.Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.detach(), requires_grad=False)

        self.base.weight = frozen(weight)
        if bias is not None:
            self.base.bias = frozen(bias)
        self.base.out_features, self.base.in_features = weight.shape

    def _bring_to(self, x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
        return linear(x.to(linear.weight.dtype)).to(x.dtype)


class WidenedIn(WidenedProjection):
    """The first projection: its output gains the new units; with gates, units and gates each gain theirs."""

    def __init__(self, base_layer: nn.Linear, gated: bool) -> None:
        super().__init__(base_layer)
        self.gated = gated

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter; it has a bias where the wrapped projection has one."""
        width = config.units * (2 if self.gated else 1)
        units = nn.Linear(self.base.in_features, width, bias=self.base.bias is not None, device=device)
        initialise(units.weight, "truncated_normal", config.init_std)
        if units.bias is not None:
            nn.init.zeros_(units.bias)
        self.fl_tuning_units[adapter_name] = units

    def widened(self, names: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `WidenedProjection.widened`."""
        dtype = self.base.weight.dtype
        weight = self._join([self.base.weight, *(self.units_of(name).weight.to(dtype) for name in names)], dim=0)
        if self.base.bias is None:
            return weight, None
        return weight, self._join([self.base.bias, *(self.units_of(name).bias.to(dtype) for name in names)], dim=0)

    def _join(self, parts: list[torch.Tensor], dim: int) -> torch.Tensor:
        if not self.gated:
            return torch.cat(parts, dim=dim)
        halves = [part.chunk(2, dim=dim) for part in parts]
        return torch.cat([*(units for units, _ in halves), *(gates for _, gates in halves)], dim=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, tokens, d) in; (batch, tokens, width of the network + new units) out."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: torch.Tensor = self.base(x)
        names = self.active_in(self.fl_tuning_units)
        if not names:
            return output
        return self._join([output, *(self._bring_to(x, self.units_of(name)) for name in names)], dim=-1)


class WidenedOut(WidenedProjection):
    """The second projection: takes the new units too."""

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter; it has a bias where the wrapped projection has one."""
        units = nn.Linear(config.units, self.base.out_features, bias=self.base.bias is not None, device=device)
        if config.zero_init:
            nn.init.zeros_(units.weight)
        else:
            initialise(units.weight, "truncated_normal", config.init_std)
        if units.bias is not None:
            nn.init.zeros_(units.bias)
        self.fl_tuning_units[adapter_name] = units

    def widened(self, names: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `WidenedProjection.widened`."""
        dtype, units = self.base.weight.dtype, [self.units_of(name) for name in names]
        weight = torch.cat([self.base.weight, *(unit.weight.to(dtype) for unit in units)], dim=1)
        if self.base.bias is None:
            return weight, None
        return weight, self.base.bias + sum(unit.bias.to(dtype) for unit in units)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shape (batch, tokens, width of the network + new units) in; (batch, tokens, d) out."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = self.active_in(self.fl_tuning_units)
        if not names:
            return cast("torch.Tensor", self.base(hidden))
        units = [self.units_of(name) for name in names]
        first, *others = hidden.split([self.base.in_features, *(unit.in_features for unit in units)], dim=-1)
        output: torch.Tensor = self.base(first)
        for part, unit in zip(others, units, strict=True):
            output = output + self._bring_to(part, unit)
        return output


class FlTuningModel(AnatomyTuner):
    """Adds hidden units to feed-forward networks (arXiv 2206.15312; genggui001/FL-Tuning).

    Args:
        model: The model to adapt.
        config: An `FlTuningConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "fl_tuning_"
    tuner_layer_cls = WidenedProjection

    def default_targets(self, peft_config: FlTuningConfig, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        return anatomy.layer_pattern(layers, ("feed_forward_in", "feed_forward_out"))

    def create_layer(self, peft_config: FlTuningConfig, target: nn.Module, key: str) -> WidenedProjection:
        """See `AnatomyTuner.create_layer`."""
        if not isinstance(target, nn.Linear):
            raise ValueError(f"{key} is a {type(target).__name__}, not a linear projection")
        if self.anatomy.is_role(key, "feed_forward_in"):
            return WidenedIn(target, self.anatomy.gated)
        return WidenedOut(target)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        model = cast("nn.Module", super()._unload_and_optionally_merge(merge=merge, **kwargs))
        if merge:
            self._note_width(model)
        return model

    def _note_width(self, model: nn.Module) -> None:
        """Writes the width of the wider networks into the config, so that the merged model can be saved and loaded."""
        anatomy, config = self.anatomy, cast("Any", model.config)
        key = anatomy.feed_forward_size_key
        outs = [module for name, module in model.named_modules() if anatomy.is_role(name, "feed_forward_out")]
        widths = {cast("nn.Linear", module).in_features for module in outs}
        if len(widths) == 1:
            setattr(config, key, widths.pop())
        else:
            warnings.warn(
                f"The merged feed-forward networks have different widths ({sorted(widths)}), which config.{key} cannot "
                "say: the merged model runs, but from_pretrained cannot load it.",
                stacklevel=2,
            )
