"""What our PEFT tuners share, and how a PEFT config is put onto a sequence classifier."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from petl_bench.backbones.anatomy import ANATOMIES, Anatomy
from petl_bench.backbones.layers import LayerPlan
from petl_bench.errors import RequestError
from petl_bench.methods.registry import MethodConfig, register_tuners

if TYPE_CHECKING:
    from peft import PeftModel


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


AnyPeftConfig = TypeVar("AnyPeftConfig", bound="PeftConfig")

# Heads that PEFT trains and saves of its own accord in a sequence classifier.
_PEFTS_GUESS = ("classifier", "score")


def build_config(config_class: type[AnyPeftConfig], settings: MethodConfig, **further: Any) -> AnyPeftConfig:
    """Builds a PEFT config from the method's settings of the same names.

    Raises:
        RequestError: where a setting is outside its range.
    """
    known = {field.name for field in fields(config_class)}
    shared = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name in known}
    try:
        return config_class(**shared, **further)
    except ValueError as error:
        raise RequestError(f"method={settings.name}: {error}.") from error


def with_adapter(model: nn.Module, config: PeftConfig, anatomy: Anatomy) -> PeftModel:
    """Returns the PEFT model: backbone frozen, the config's adapter and the head trained.

    Raises:
        RequestError: where the tuner refuses the combination.
    """
    from peft import TaskType, get_peft_model

    config.task_type = TaskType.SEQ_CLS
    # Tuners without `modules_to_save` bring a head of their own.
    if hasattr(config, "modules_to_save"):
        # By architecture: PEFT's own guess leaves DeBERTa's pooler and ModernBERT's dense layer frozen.
        further = [module for module in anatomy.head if module not in _PEFTS_GUESS]
        config.modules_to_save = [*(config.modules_to_save or ()), *further] or None
    try:
        return get_peft_model(model, config)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"PEFT cannot apply {str(config.peft_type).rpartition('.')[2]} to the architecture {anatomy.model_type}: "
            f"{error}"
        ) from error


def whole_encoder(settings: MethodConfig, plan: LayerPlan) -> None:
    """Checks that a method which reads all layers is not asked to adapt some.

    Raises:
        RequestError: where it is.
    """
    if (plan.bottom, plan.top) != (1, plan.head):
        raise RequestError(
            f"method={settings.name} reads every layer up to the head's and adapts none by itself: use layers=all, or "
            "layers=window layers.bottom=1 to read fewer."
        )


# Importing PEFT above was too early for the tuners that are built on this module.
register_tuners()
