"""The PEFT tuner of CoDA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import (
    AnatomyTuner,
    LayerwiseConfig,
    give_capture_back,
    norm_modules,
    take_capture,
    train_whole,
)
from petl_bench.methods.coda import CodaSettings
from petl_bench.methods.coda.layer import CodaLayer

ATTENTIONS = ("k2k", "k2all")
ROUTERS = ("learned", "random", "first", "norm")
SOLVERS = ("exact", "iterative")


@dataclass
class CodaConfig(CodaSettings, LayerwiseConfig):
    """Configuration of a `CodaModel`: the options of `CodaSettings` and the layers of `LayerwiseConfig`."""

    method = "coda"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("attention", ATTENTIONS),
            ("router", ROUTERS),
            ("last_router", ROUTERS),
            ("solver", SOLVERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        if self.bottleneck < 1 or self.iterations < 1:
            raise ValueError("bottleneck and iterations must be at least 1")
        if not self.reduction >= 1:
            raise ValueError(f"reduction={self.reduction} must be at least 1")
        for name in ("epsilon", "epsilon_start", "router_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if not 0 < self.epsilon_decay < 1:
            raise ValueError(f"epsilon_decay={self.epsilon_decay} must lie between 0 and 1")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation} is not in transformers' table")

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Completes a stored config: adapters of before `last_router` have a learned router in every layer."""
        checked: dict[str, Any] = super().check_kwargs(**{"last_router": "learned", **kwargs})
        return checked

    @property
    def routes(self) -> bool:
        """Whether some tokens skip the layers."""
        return self.reduction > 1


class CodaModel(AnatomyTuner):
    """Conditional adapters (Lei et al., NeurIPS 2023, arXiv 2304.04947); a reconstruction, as no code was released.

    Args:
        model: The model to adapt.
        config: A `CodaConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "coda_"
    tuner_layer_cls = CodaLayer

    def default_targets(self, peft_config: CodaConfig, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        if peft_config.attention == "k2all" and peft_config.routes:
            attention = anatomy.get_layers(self.model)[0].get_submodule(anatomy.self_attention)
            if anatomy.norm_first or anatomy.query == anatomy.key:
                raise ValueError(
                    f"attention=k2all needs separate projections for queries and keys, which {anatomy.model_type} "
                    "fuses: use attention=k2k"
                )
            if hasattr(attention, "disentangled_attention_bias"):
                raise ValueError(
                    f"attention=k2all needs as many queries as keys in {anatomy.model_type}'s relative positions: "
                    "use attention=k2k"
                )
        return anatomy.layer_pattern(layers, ())

    def _prepare_model(self, peft_config: CodaConfig, model: nn.Module) -> None:  # type: ignore[override]
        if peft_config.train_layernorm:
            if any("." not in norm for norm in self.anatomy.norms):
                raise ValueError(
                    f"train_layernorm=true does not work with {self.anatomy.model_type}, whose norms lie directly in "
                    "the layers that CoDA wraps, where PEFT trains nothing: leave it out"
                )
            norms = norm_modules(model, self.anatomy, peft_config.layers_to_transform)
            train_whole(peft_config, map(self._once_wrapped, norms))

    def _once_wrapped(self, name: str) -> str:
        """The name of a norm when its layer is wrapped: PEFT looks for what it trains whole after the wrapping."""
        number = self.anatomy.layer_number(name)
        if number is None:
            return name
        return re.sub(rf"\.{number - 1}\.", f".{number - 1}.base_layer.", name, count=1)

    def create_layer(self, peft_config: CodaConfig, target: nn.Module, key: str) -> CodaLayer:
        """See `AnatomyTuner.create_layer`."""
        config: Any = self.model.config
        number = self.anatomy.layer_number(key) or 0
        first_alone = number == self.anatomy.num_layers(config) and _head_reads_first_token(self.model)
        layer = CodaLayer(target, self.anatomy, config, number, first_alone=first_alone)
        take_capture(self.model, target, layer)
        return layer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, CodaLayer):
            give_capture_back(child, new_module)
        super()._replace_module(parent, child_name, new_module, child)


def _head_reads_first_token(model: nn.Module) -> bool:
    """Whether a model classifies by its first token alone, as the sequence classifiers but some of ModernBERT's do."""
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    return classifies and getattr(model.config, "classifier_pooling", "cls") == "cls"
