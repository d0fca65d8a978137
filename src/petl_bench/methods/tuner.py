"""What our PEFT tuners share: targets from the anatomy table, adapters by name, and leaving without a trace."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from petl_bench.backbones.anatomy import ANATOMIES, Anatomy


@dataclass
class LayerwiseConfig(PeftConfig):
    """Base of the configs of tuners that adapt parts of a transformer's layers.

    Args:
        target_modules: Names of the adapted modules, as a regular expression that the whole name must match. None:
            found by the architecture; this is what you want, and what is saved with the adapter.
        layers_to_transform: 0-based numbers of the layers to adapt; None: all.
        modules_to_save: Further modules that are trained and saved whole, such as a new head.
    """

    target_modules: str | None = field(default=None, metadata={"help": "Regular expression; None: by architecture."})
    layers_to_transform: list[int] | None = field(default=None, metadata={"help": "0-based layers; None: all."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]


class AnatomyTuner(BaseTuner):
    """Base of the tuners that find their targets in the anatomy table."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's contract)

    def default_targets(self, peft_config: Any, anatomy: Anatomy, layers: list[int]) -> str:
        """A regular expression for what the method adapts in these layers (1-based).

        Raises:
            ValueError: where the method does not fit the architecture, with the reason.
        """
        raise NotImplementedError

    def create_layer(self, peft_config: Any, target: nn.Module, key: str) -> Any:
        """Wraps one target in a tuner layer that has no adapter yet."""
        raise NotImplementedError

    def extend_layer(self, layer: Any, adapter_name: str, peft_config: Any) -> None:
        """Adds an adapter to a wrapped target."""
        layer.update_layer(adapter_name, peft_config, device=self.device)

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of the adapted architecture are.

        Raises:
            ValueError: for an architecture outside the table.
        """
        model_type = getattr(getattr(self.model, "config", None), "model_type", None)
        if model_type not in ANATOMIES:
            raise ValueError(
                f"{type(self).__name__} does not know the architecture {model_type!r}; "
                f"it knows {', '.join(sorted(ANATOMIES))}"
            )
        return ANATOMIES[model_type]

    @property
    def device(self) -> torch.device:
        """Where the adapted model is."""
        return next(self.model.parameters()).device

    # PEFT hands each tuner its own config class.
    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        anatomy = self.anatomy
        if peft_config.target_modules is None:
            chosen = getattr(peft_config, "layers_to_transform", None)
            num_layers = anatomy.num_layers(self.model.config)
            layers = list(range(1, num_layers + 1)) if chosen is None else [layer + 1 for layer in chosen]
            if not layers or not all(1 <= layer <= num_layers for layer in layers):
                raise ValueError(f"layers_to_transform={chosen} must name layers in 0..{num_layers - 1}")
            peft_config.target_modules = self.default_targets(peft_config, anatomy, layers)
        return peft_config

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        layer: Any = target
        if not isinstance(target, BaseTunerLayer):
            layer = self.create_layer(peft_config, target, current_key)
            layer.set_adapter(self.active_adapters)
            setattr(parent, target_name, layer)
        self.extend_layer(layer, adapter_name, peft_config)
        layer.cast_adapter(adapter_name, next(self.model.parameters()).dtype)
        layer.set_adapter(layer.active_adapters, inference_mode=peft_config.inference_mode)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own moves `weight` along, which dropouts, whole layers and encoders lack.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the name at the end or one before; in ours a whole module may follow it.
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)


class TunerLayer(nn.Module, BaseTunerLayer):
    """Base of our tuner layers: a wrapped module and containers of adapters by name."""

    adapter_layer_names: tuple[str, ...] = ()
    # The reason why the adapter cannot become part of the wrapped module; None where it can.
    unmergeable: ClassVar[str | None] = None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        # Models ask their parts for more than a forward: a layer for its kind, an encoder for its embeddings.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def active_in(self, container: nn.ModuleDict | nn.ParameterDict) -> list[str]:
        """Names of the adapters in `container` that are to act now."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in container]

    def cast_adapter(self, name: str, dtype: torch.dtype) -> None:
        """Brings an adapter to the model's precision, as PEFT does; PEFT then lifts half precision to float32."""
        containers = [getattr(self, attribute) for attribute in self.adapter_layer_names]
        for adapter in (container[name] for container in containers if name in container):
            for parameter in adapter.parameters() if isinstance(adapter, nn.Module) else [adapter]:
                parameter.data = parameter.data.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Makes the adapter part of the wrapped module.

        Raises:
            ValueError: where that is impossible, with the reason.
        """
        raise ValueError(f"this adapter cannot be merged: {self.unmergeable}")

    def unmerge(self) -> None:
        """Undoes `merge`; nothing to do where there is no merging."""
