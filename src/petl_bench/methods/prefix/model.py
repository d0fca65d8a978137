"""The PEFT tuner of prefix tuning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner, LayerwiseConfig
from petl_bench.methods.prefix import PrefixSettings
from petl_bench.methods.prefix.layer import PrefixLayer


@dataclass
class PrefixConfig(PrefixSettings, LayerwiseConfig):
    """Configuration of a `PrefixModel`: the options of `PrefixSettings` and the layers of `LayerwiseConfig`."""

    method = "prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")
        if self.mlp_hidden is not None and self.mlp_hidden < 1:
            raise ValueError(f"mlp_hidden={self.mlp_hidden} must be at least 1, or null")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")

    def to_dict(self) -> dict[str, Any]:
        """What is saved with the adapter: plain prefixes, even if a network computed them during training."""
        return super().to_dict() | {"mlp_hidden": None}


class PrefixModel(AnatomyTuner):
    """Trained keys and values in every layer's attention (P-tuning v2, arXiv 2110.07602; THUDM/P-tuning-v2).

    Args:
        model: The model to adapt.
        config: A `PrefixConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "prefix_"
    tuner_layer_cls = PrefixLayer

    def default_targets(self, peft_config: PrefixConfig, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        return anatomy.layer_pattern(layers, ("self_attention",))

    def create_layer(self, peft_config: PrefixConfig, target: nn.Module, key: str) -> PrefixLayer:
        """See `AnatomyTuner.create_layer`."""
        config: Any = self.model.config
        return PrefixLayer(target, config.hidden_size, config.num_attention_heads)

    def extend_layer(self, layer: PrefixLayer, adapter_name: str, peft_config: PrefixConfig) -> None:
        """See `AnatomyTuner.extend_layer`; a network must know for how many layers it computes."""
        names = [name for name, _ in self.model.named_modules()]
        num_layers = sum(re.fullmatch(str(peft_config.target_modules), name) is not None for name in names)
        fellows = tuple(known for known in _prefix_layers(self.model) if adapter_name in known.prefix_place)
        layer.update_layer(adapter_name, peft_config, self.device, fellows, num_layers)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, PrefixLayer):
            child.restore()
        super()._replace_module(parent, child_name, new_module, child)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The prefixes themselves, whether they are parameters or computed."""
        found = {}
        for name, module in model.named_modules():
            if isinstance(module, PrefixLayer) and adapter_name in module.prefix_place:
                keys, values = module.keys_and_values(adapter_name)
                found[f"{name}.prefix_key.{adapter_name}"] = keys.detach()
                found[f"{name}.prefix_value.{adapter_name}"] = values.detach()
        return found

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What is loaded are plain prefixes: a network that computed this adapter's until now gives way to them."""
        layers = _prefix_layers(model)
        for layer in layers:
            layer.drop_network(adapter_name)
        for layer in layers:
            if adapter_name in layer.prefix_network:
                del layer.prefix_network[adapter_name]
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _prefix_layers(model: nn.Module) -> list[PrefixLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]
