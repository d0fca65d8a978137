"""The PEFT tuner of bottleneck adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.activations import ACT2FN

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner, LayerwiseConfig, TunerLayer, norm_modules, train_whole
from petl_bench.methods.houlsby import VARIANTS, HoulsbySettings
from petl_bench.methods.modules import Bottleneck


@dataclass
class HoulsbyConfig(HoulsbySettings, LayerwiseConfig):
    """Configuration of a `HoulsbyModel`: the options of `HoulsbySettings` and the layers of `LayerwiseConfig`."""

    method = "houlsby"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} must be at least 1")
        if self.activation != "model" and self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation} is neither `model` nor in transformers' table")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")
        if self.train_layernorm is None:
            self.train_layernorm = self.variant == "houlsby"
        if self.train_layernorm and self.variant == "pfeiffer":
            raise ValueError("variant=pfeiffer adapts the norms themselves, so train_layernorm must be false")


class SerialAdapter(TunerLayer):
    """Adds `A(y)` to the output y of the wrapped module, the last one before the residual and so after its dropout."""

    adapter_layer_names = ("houlsby_adapter",)
    unmergeable: ClassVar[str | None] = "a bottleneck with an activation between its projections is no linear map"

    def __init__(self, base_layer: nn.Module, hidden_size: int, model_activation: str) -> None:
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.model_activation = model_activation
        self.houlsby_adapter = nn.ModuleDict({})

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter."""
        self.houlsby_adapter[adapter_name] = Bottleneck(
            self.hidden_size,
            config.bottleneck,
            activation=self.model_activation if config.activation == "model" else config.activation,
            init=config.init,
            init_std=config.init_std,
            scale=config.scale,
            device=device,
        )

    def update(self, x: torch.Tensor) -> torch.Tensor | None:
        """Sum of the active adapters' updates for `x`; None where none is active."""
        updates = [self.houlsby_adapter[name](x) for name in self.active_in(self.houlsby_adapter)]
        return sum(updates[1:], updates[0]) if updates else None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Shape (batch, tokens, d)."""
        output: torch.Tensor = self.base_layer(*args, **kwargs)
        update = self.update(output)
        return output if update is None else output + update


class NormAdapter(SerialAdapter):
    """Pfeiffer's placement: a layer's last norm N, given the sum s, returns N(s + A(N(s)))."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Shape (batch, tokens, d)."""
        (summed,) = args
        normed: torch.Tensor = self.base_layer(summed)
        update = self.update(normed)
        return normed if update is None else self.base_layer(summed + update)


class Relay:
    """Carries the feed-forward network's input to its end, within one forward pass of one layer."""

    def __init__(self) -> None:
        self.input: torch.Tensor | None = None


class ParallelStart(TunerLayer):
    """Wraps the start of the feed-forward network and stores its input. Has no parameters."""

    unmergeable: ClassVar[str | None] = SerialAdapter.unmergeable

    def __init__(self, base_layer: nn.Module, relay: Relay) -> None:
        super().__init__(base_layer)
        self.relay = relay

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Nothing to add: the adapter is at the other end."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The wrapped projection's output."""
        self.relay.input = x
        output: torch.Tensor = self.base_layer(x, *args, **kwargs)
        return output


class ParallelEnd(SerialAdapter):
    """Wraps the end of the feed-forward network and adds the update for its *input*.

    Args:
        base_layer: The last module of the network.
        hidden_size: Width d of the model.
        model_activation: The backbone's activation, for `activation=model`.
        relay: Carries the network's input from its start.
    """

    def __init__(self, base_layer: nn.Module, hidden_size: int, model_activation: str, relay: Relay) -> None:
        super().__init__(base_layer, hidden_size, model_activation)
        self.relay = relay

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Shape (batch, tokens, d)."""
        output: torch.Tensor = self.base_layer(*args, **kwargs)
        # Removed from the relay, so that no activation outlives the forward pass.
        start, self.relay.input = self.relay.input, None
        update = None if start is None else self.update(start)
        return output if update is None else output + update


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
        """The relay of this layer."""
        relays: dict[int | None, Relay] = self.__dict__.setdefault("_relays", {})
        return relays.setdefault(self.anatomy.layer_number(key), Relay())

    def _check_new_adapter_config(self, config: HoulsbyConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        known: dict[str, Any] = self.peft_config
        variants = {settings.variant for settings in known.values()}
        if len(variants) > 1:
            raise ValueError(f"adapters on one model must be of one variant, not {' and '.join(sorted(variants))}")
