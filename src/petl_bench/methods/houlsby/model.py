"""The PEFT tuner of bottleneck adapters."""

from __future__ import annotations

from typing import Any

from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner, TunerLayer, norm_modules, train_whole
from petl_bench.methods.houlsby.config import VARIANTS, HoulsbyConfig
from petl_bench.methods.houlsby.layer import NormAdapter, ParallelEnd, ParallelStart, Relay, SerialAdapter


class HoulsbyModel(AnatomyTuner):
    """Bottleneck adapters in every layer (Houlsby et al., ICML 2019, arXiv 1902.00751).

    Args:
        model: The model to adapt.
        config: A `HoulsbyConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "houlsby_"
    tuner_layer_cls = TunerLayer

    def default_targets(self, peft_config: HoulsbyConfig, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        if peft_config.variant == "pfeiffer" and anatomy.norm_first:
            raise ValueError(
                f"variant=pfeiffer is between the norms after the feed-forward network, but {anatomy.model_type} "
                "has its norms before it"
            )
        return anatomy.layer_pattern(layers, VARIANTS[peft_config.variant])

    def _prepare_model(self, peft_config: HoulsbyConfig, model: nn.Module) -> None:  # type: ignore[override]
        if peft_config.train_layernorm:
            train_whole(peft_config, norm_modules(model, self.anatomy, peft_config.layers_to_transform))

    def create_layer(self, peft_config: HoulsbyConfig, target: nn.Module, key: str) -> TunerLayer:
        """See `AnatomyTuner.create_layer`."""
        config: Any = self.model.config
        shape = (config.hidden_size, getattr(config, self.anatomy.activation_key))
        if peft_config.variant == "parallel":
            if self.anatomy.is_role(key, "feed_forward_in"):
                return ParallelStart(target, self._relay(key))
            return ParallelEnd(target, *shape, self._relay(key))
        return (NormAdapter if peft_config.variant == "pfeiffer" else SerialAdapter)(target, *shape)

    def _relay(self, key: str) -> Relay:
        """The one of this layer."""
        relays: dict[int | None, Relay] = self.__dict__.setdefault("_relays", {})
        return relays.setdefault(self.anatomy.layer_number(key), Relay())

    def _check_new_adapter_config(self, config: HoulsbyConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        known: dict[str, Any] = self.peft_config
        variants = {settings.variant for settings in known.values()}
        if len(variants) > 1:
            raise ValueError(f"adapters on one model must be of one variant, not {' and '.join(sorted(variants))}")
