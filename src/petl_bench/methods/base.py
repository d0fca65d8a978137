"""What our PEFT tuners share, and how a PEFT config is applied to a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from petl_bench.backbones.anatomy import Anatomy, all_anatomies
from petl_bench.errors import RequestError
from petl_bench.methods.registry import AdaptContext, MethodConfig, get_method, register_tuners

if TYPE_CHECKING:
    from peft import PeftModel


def take_capture(model: nn.Module, layer: nn.Module, wrapper: nn.Module) -> None:
    """Moves the hooks that record hidden states from a layer of `model` to its wrapper."""
    owners = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(inner is layer for inner in module.modules())
    ]
    # Installed for the innermost one, the encoder, as for another one they would be installed a second time.
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


@dataclass
class TunerConfig(PeftConfig):
    """Base of the configs of our tuners."""

    # Name of the method; in upper case, that of its PEFT type.
    method: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        # This registers the type in PEFT, whatever was imported first.
        if self.method.upper() not in PeftType.__members__:
            register_tuners()
        self.peft_type = PeftType(self.method.upper())
        for option in fields(self):
            choices = option.metadata.get("choices")
            if choices is not None and (value := getattr(self, option.name)) not in choices:
                raise ValueError(f"{option.name}={value} must be one of {', '.join(choices)}")


@dataclass
class LayerwiseConfig(TunerConfig):
    """Base of the configs of tuners that adapt parts of a transformer's layers.

    Args:
        target_modules: A regular expression that must match the whole name of every adapted module. None: the tuner
            fills it in from the anatomy table, which is what you usually want. It is saved with the adapter.
        layers_to_transform: Numbers of the adapted layers, counted from 0. None: all layers.
        modules_to_save: Other modules that are trained and saved as a whole, such as a new head.
    """

    target_modules: str | None = field(default=None, metadata={"help": "Regular expression; None: by architecture."})
    layers_to_transform: list[int] | None = field(default=None, metadata={"help": "Layers, from 0; None: all."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved as a whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]


class AnatomyTuner(BaseTuner):
    """Base of the tuners that find their target modules in the anatomy table."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT expects it)

    def default_targets(self, peft_config: Any, anatomy: Anatomy, layers: list[int]) -> str:
        """Chooses the modules that are wrapped.

        Args:
            peft_config: The config of the adapter.
            anatomy: The anatomy of the model's architecture.
            layers: Numbers of the adapted layers, counted from 1.

        Returns:
            A regular expression that matches the whole names of these modules.

        Raises:
            ValueError: If the method does not fit the architecture.
        """
        raise NotImplementedError

    def create_layer(self, peft_config: Any, target: nn.Module, key: str) -> Any:
        """Wraps a target module in a `TunerLayer` without an adapter.

        Args:
            peft_config: The config of the adapter.
            target: The module to wrap.
            key: Its name in the model.
        """
        raise NotImplementedError

    def extend_layer(self, layer: Any, adapter_name: str, peft_config: Any) -> None:
        """Adds an adapter to a wrapped module."""
        layer.update_layer(adapter_name, peft_config, device=self.device)

    @property
    def anatomy(self) -> Anatomy:
        """The anatomy of the adapted model.

        Raises:
            ValueError: If the table has no row for its architecture.
        """
        model_type = getattr(getattr(self.model, "config", None), "model_type", None)
        rows = all_anatomies()
        if model_type not in rows:
            raise ValueError(
                f"{type(self).__name__} does not know the architecture {model_type!r}; "
                f"it knows {', '.join(sorted(rows))}"
            )
        return rows[model_type]

    @property
    def device(self) -> torch.device:
        """The device of the adapted model."""
        return next(self.model.parameters()).device

    # In PEFT too, every tuner narrows the type of the config.
    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        anatomy = self.anatomy
        train_head(peft_config, self.model, anatomy)
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

    def _check_merge_allowed(self) -> None:
        """Refuses before PEFT changes anything, as a partly unwrapped model could no longer be saved."""
        super()._check_merge_allowed()
        for module in self.model.modules():
            if isinstance(module, TunerLayer) and module.unmergeable is not None:
                raise ValueError(f"this adapter cannot be merged: {module.unmergeable}")

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own method also moves `weight`, which dropouts, whole layers and encoders do not have.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name in the last or the second last place of a parameter's name. Our containers may
        # hold whole modules, whose parameter names are longer.
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)


class TunerLayer(nn.Module, BaseTunerLayer):
    """Base of our tuner layers: a wrapped module, and containers that hold the adapters by name.

    Args:
        base_layer: The module to wrap.
    """

    adapter_layer_names: tuple[str, ...] = ()
    # Why the adapter cannot be merged into the wrapped module; None if it can.
    unmergeable: ClassVar[str | None] = None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        # transformers reads other attributes of its modules too, such as the attention type of a layer or the
        # embeddings of an encoder.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def active_in(self, container: nn.ModuleDict | nn.ParameterDict) -> list[str]:
        """Returns the names of the active adapters in `container`; none if adapters are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in container]

    def cast_adapter(self, name: str, dtype: torch.dtype) -> None:
        """Casts an adapter to the precision of the model, as PEFT does; PEFT then casts half precision to float32."""
        containers = [getattr(self, attribute) for attribute in self.adapter_layer_names]
        for adapter in (container[name] for container in containers if name in container):
            for parameter in adapter.parameters() if isinstance(adapter, nn.Module) else [adapter]:
                parameter.data = parameter.data.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges adapters into the wrapped module.

        Raises:
            ValueError: If that is impossible, with the reason.
        """
        raise ValueError(f"this adapter cannot be merged: {self.unmergeable}")

    def unmerge(self) -> None:
        """Undoes `merge`; a tuner that cannot merge has nothing to undo."""


def norm_modules(model: nn.Module, anatomy: Anatomy, layers: list[int] | None) -> list[str]:
    """Lists the norms of the encoder that have parameters.

    Args:
        model: The model, adapted or not.
        anatomy: The anatomy of its architecture.
        layers: Numbers of the layers, counted from 0, whose norms are listed. None: all norms, also those outside the
            layers.

    Returns:
        Their names, without the name of the encoder in front.
    """
    names = []
    inside = f"{anatomy.encoder}." if hasattr(model, anatomy.encoder) else ""
    for name, module in model.named_modules():
        # Where PEFT trains a module as a whole, its wrapper holds the original and a copy for each adapter.
        plain = name.split(".original_module")[0].split(".modules_to_save")[0].replace(".base_layer", "")
        if "norm" not in type(module).__name__.lower() or not plain.startswith(inside):
            continue
        if next(module.parameters(), None) is None:
            continue
        number = anatomy.layer_number(plain)
        if layers is None or (number is not None and number - 1 in layers):
            names.append(plain.removeprefix(inside))
    return list(dict.fromkeys(names))


def train_whole(config: Any, modules: Iterable[str]) -> None:
    """Adds modules to those that PEFT trains and saves as a whole."""
    config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *modules])) or None


# Heads that PEFT trains and saves in every classifier by default.
HEADS_KNOWN_TO_PEFT = ("classifier", "score")


def train_head(config: Any, model: nn.Module, anatomy: Anatomy) -> None:
    """Trains and saves all of a classifier's head.

    PEFT finds a head by its name, and would leave DeBERTa's pooler and ModernBERT's dense layer frozen and unsaved.

    Args:
        config: The config of an adapter. Without a task (it is not for a classifier) or without `modules_to_save` (its
            tuner has its own head) it is not changed.
        model: The model.
        anatomy: The anatomy of its architecture.
    """
    if config.task_type is not None and hasattr(config, "modules_to_save"):
        present = (module for module in anatomy.head if hasattr(model, module))
        train_whole(config, (module for module in present if module not in HEADS_KNOWN_TO_PEFT))


def adapt(model: nn.Module, config: MethodConfig, context: AdaptContext) -> nn.Module:
    """Applies a method to a model.

    Args:
        model: A plain classifier of texts or tokens, which is changed in place.
        config: The options of the method; its name says which.
        context: The anatomy of the model, the layer plan and the number of updates to come.

    Returns:
        The adapted model.

    Raises:
        RequestError: If an option is out of range, or the method does not fit the layer plan or the architecture.
    """
    method = get_method(config.name)
    if method.adapt is not None:
        adapted: nn.Module = method.resolve(method.adapt)(model, config, context)
        return adapted
    assert method.peft_config is not None
    return _adapt_with_peft_config(method.resolve(method.peft_config), model, config, context)


def peft_options(config: MethodConfig, config_class: type[PeftConfig]) -> dict[str, Any]:
    """The options of a method that its PEFT config has fields for."""
    known = {option.name for option in fields(config_class)}
    return {option.name: getattr(config, option.name) for option in fields(config) if option.name in known}


def _adapt_with_peft_config(
    config_class: type[PeftConfig], model: nn.Module, config: MethodConfig, context: AdaptContext
) -> PeftModel:
    """Adds an adapter whose options are those of the method.

    A `LayerwiseConfig` also gets the adapted layers. All other tuners read every layer up to the one that the head
    reads, and can only be used if the layer plan adapts all of these.

    Args:
        config_class: The config class of the adapter; its fields have the names of the method's options.
        model: A plain classifier of texts or tokens, which is changed in place.
        config: The options of the method.
        context: The anatomy of the model and the layer plan.

    Raises:
        RequestError: If an option is out of range, or the method does not fit the layer plan or the architecture.
    """
    options = peft_options(config, config_class)
    if config.start is not None and "init" in options:
        # The adapter on the disk replaces any initialisation.
        options["init"] = next(option.default for option in fields(config) if option.name == "init")
    if issubclass(config_class, LayerwiseConfig):
        options["layers_to_transform"] = context.layers_to_transform
    elif (context.plan.bottom, context.plan.top) != (1, context.plan.head):
        raise RequestError(
            f"method={config.name} reads every layer up to the head's and adapts none by itself: use layers=all, or "
            "layers=window layers.bottom=1 to read fewer."
        )
    try:
        peft_config = config_class(**options)
    except ValueError as error:
        raise RequestError(f"method={config.name}: {error}.") from error
    return with_adapter(model, peft_config, context.anatomy)


def with_adapter(model: nn.Module, config: PeftConfig, anatomy: Anatomy) -> PeftModel:
    """Freezes a classifier of sequences or tokens, adds an adapter, and makes the adapter and the head trainable.

    Args:
        model: A plain classifier, which is changed in place.
        config: The config of the adapter.
        anatomy: The anatomy of the model's architecture.

    Raises:
        RequestError: If PEFT refuses to combine the adapter with this architecture.
    """
    from peft import TaskType, get_peft_model

    kind = str(config.peft_type).rpartition(".")[2]
    if anatomy.is_tagger and config.is_prompt_learning:
        raise RequestError(
            f"PEFT cannot apply {kind} to a tagger: it brings tokens or keys of its own, for which there are no tags. "
            "Use method=prefix."
        )
    # Tuners without `modules_to_save` have their own head. PEFT's class for taggers does not support such tuners; its
    # class for no particular type of task adds nothing to them.
    config.task_type = None if anatomy.is_tagger else TaskType.SEQ_CLS
    if hasattr(config, "modules_to_save"):
        config.task_type = TaskType.TOKEN_CLS if anatomy.is_tagger else TaskType.SEQ_CLS
    # Our own tuners would do so themselves, PEFT's do not.
    train_head(config, model, anatomy)
    try:
        return get_peft_model(model, config)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"PEFT cannot apply {kind} to the architecture {anatomy.model_type}: {error}") from error


# If PEFT was imported by the import of this module, the tuners could not be registered before this line.
register_tuners()
