"""CoDA: frozen transformer layers that only some tokens pass, each parallel to an adapter that all take."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.activations import ACT2FN

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.attention import AttendToAll
from petl_bench.methods.base import (
    AnatomyTuner,
    LayerwiseConfig,
    TunerLayer,
    give_capture_back,
    norm_modules,
    take_capture,
    train_whole,
)
from petl_bench.methods.coda import CodaSettings
from petl_bench.methods.coda.routing import Routing, gather_arguments, gather_tokens, mask_for, real_tokens, route
from petl_bench.methods.modules import Bottleneck

# Number of positions for which scores of the `random` router are drawn.
_MOST_TOKENS = 8192


class CodaLayer(TunerLayer):
    """Computes `y_i = x_i + A(x_i) + w_i (F(x_S)_i - x_i)` for routed tokens, `y_i = x_i + A(x_i)` for the others.

    F is the frozen layer, run on the gathered tokens S alone; A the adapter; w the soft top-k weights. Our form for
    layers with norms after the sums (reconstruction): routed tokens get a mean of x and F(x), which keeps their scale.
    Where the norms come first, adapter and router read the layer's first norm of x.
    """

    adapter_layer_names = ("coda_adapter", "coda_router")
    other_param_names = ("settings",)
    unmergeable: ClassVar[str | None] = "its tokens skip layers by their content"

    def __init__(
        self, base_layer: nn.Module, anatomy: Anatomy, config: Any, number: int, *, first_alone: bool = False
    ) -> None:
        """Wraps a layer.

        Args:
            base_layer: The layer.
            anatomy: Where its parts are.
            config: The model's config.
            number: Number of the layer, counted from 1.
            first_alone: Whether only the first token's output of this layer is read.
        """
        super().__init__(base_layer)
        self.first_alone = first_alone
        self.coda_adapter = nn.ModuleDict({})
        self.coda_router = nn.ParameterDict({})
        self.settings: dict[str, Any] = {}
        self.hidden_size, self.num_heads, self.number = config.hidden_size, config.num_attention_heads, number
        self.first_norm = anatomy.norms[0] if anatomy.norm_first else None
        self.attend_to_all = AttendToAll(base_layer, anatomy, config)
        attention = base_layer.get_submodule(anatomy.self_attention)
        # MPNet's encoder passes some of its layers' arguments by position.
        self.argument_names = list(inspect.signature(base_layer.forward).parameters)[2:]
        # DeBERTa's masks hold ones and zeros of any type; all others are boolean or added to the scores.
        self.multiplies_mask = hasattr(attention, "disentangled_attention_bias")

    def update_layer(self, adapter_name: str, config: Any, device: torch.device | None = None) -> None:
        """Adds another adapter."""
        self.settings[adapter_name] = config
        self.coda_adapter[adapter_name] = Bottleneck(
            self.hidden_size, config.bottleneck, activation=config.activation, init="lora", device=device
        )
        if config.routes and self.router(config) == "learned":
            self.coda_router[adapter_name] = nn.Parameter(torch.empty(self.hidden_size, device=device))
            nn.init.normal_(self.coda_router[adapter_name], std=config.router_std)

    def router(self, config: Any) -> str:
        """The router of this layer.

        The weight of a forced token is 1, so where no other token's output is read, no gradient reaches a router.
        """
        learns = not (self.first_alone and config.force_first)
        return str(config.router if learns or config.router != "learned" else config.last_router)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Shape (batch, tokens, d) in and out; a tuple where the wrapped layer returns one."""
        names = self.active_in(self.coda_adapter)
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if len(names) > 1:
            raise ValueError("CoDA routes by one adapter at a time: activate one of " + ", ".join(names))
        return self._conditional(names[0], x, args, kwargs)

    def _conditional(self, name: str, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = self.settings[name]
        read = x if self.first_norm is None else self.base_layer.get_submodule(self.first_norm)(x)
        light = x + self.coda_adapter[name](read)
        if not config.routes:
            output = self.base_layer(x, *args, **kwargs)
            states, further = _split(output)
            return _join(light + (states - x), further, output)
        mask, args, kwargs = _take_mask(args, kwargs)
        arguments = dict(zip(self.argument_names, args, strict=False)) | kwargs
        if mask is not None and self.multiplies_mask:
            mask = mask.bool()
        learned = self.router(config) == "learned"
        routing = route(self.scores(name, read), real_tokens(mask, x), config, learned=learned)
        selected = gather_tokens(x, routing.indices)
        narrowed = mask_for(mask, routing.indices, routing.valid, to_all=config.attention == "k2all")
        if config.attention == "k2all":
            output = self.attend_to_all(selected, x, narrowed)
        else:
            output = self.base_layer(selected, narrowed, **gather_arguments(arguments, routing.indices, self.num_heads))
        states, further = _split(output)
        return _join(_add_at(light, routing, states - selected), further, output)

    def scores(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Router scores, float32 whatever the model's precision, shape (batch, tokens)."""
        router = self.router(self.settings[name])
        batch, tokens = x.shape[:2]
        if router == "learned":
            with torch.autocast(x.device.type, enabled=False):
                return x.float() @ self.coda_router[name].float()
        if router == "norm":
            return x.float().norm(dim=-1)
        if router == "first":
            order = -torch.arange(tokens, dtype=torch.float32)
        else:
            order = torch.rand(_MOST_TOKENS, generator=torch.Generator().manual_seed(self.number))[:tokens]
        return order.to(x.device).expand(batch, tokens)


def _add_at(light: torch.Tensor, routing: Routing, update: torch.Tensor) -> torch.Tensor:
    """Adds the weighted update to the routed rows."""
    weighted = (routing.weights[..., None] * update).to(light.dtype)
    return light.scatter_add(1, routing.indices[..., None].expand_as(weighted), weighted)


def _take_mask(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor | None, tuple[Any, ...], dict[str, Any]]:
    """The attention mask, which layers take as their second argument or by name; and the others."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs.get("attention_mask"), (), {key: value for key, value in kwargs.items() if key != "attention_mask"}


def _split(output: Any) -> tuple[torch.Tensor, tuple[Any, ...]]:
    return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, ())


def _join(states: torch.Tensor, further: tuple[Any, ...], like: Any) -> Any:
    return (states, *further) if isinstance(like, tuple) else states


@dataclass
class CodaConfig(CodaSettings, LayerwiseConfig):
    """Configuration of a `CodaModel`: the options of `CodaSettings` and the layers of `LayerwiseConfig`."""

    method = "coda"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """Completes a stored config: adapters older than `last_router` have a learned router in every layer."""
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
            if anatomy.norm_first or anatomy.query == anatomy.key:
                raise ValueError(
                    f"attention=k2all needs separate projections for queries and keys, which {anatomy.model_type} "
                    "fuses: use attention=k2k"
                )
            if anatomy.relative_positions:
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
    """Whether a model classifies by its first token alone, as the sequence classifiers without `pooling=mean` do."""
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    return classifies and getattr(model.config, "classifier_pooling", "cls") == "cls"
