"""Prefix tuning: attention with additional keys and values in front, for every way the encoders compute attention.

Prefixes have no position: they carry no rotary angle and no relative distance, and the tokens' own positions stay.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.attention import MASKED_PAIRWISE, attention_kernel
from petl_bench.backbones.load import attention_implementation, set_attention_implementation
from petl_bench.methods.base import AnatomyTuner, LayerwiseConfig, TunerLayer
from petl_bench.methods.prefix import PrefixSettings

# The name under which attention modules with a prefix look up their attention function.
IMPLEMENTATION = "petl_bench_prefix"


def prefixed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function for transformers' interface: puts the prefix in front and calls the model's own kernel.

    Args:
        module: The attention module; its `prefix_source` gives the prefix, its `plain_config` names the kernel.
        query: Shape (batch, heads, tokens, head width), as `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: None, boolean or additive, shape (batch, 1, 1 or tokens, tokens).
        **kwargs: Other arguments of the kernel.

    Returns:
        What the kernel returns: the output for each token, and the attention weights or None.
    """
    prefix = module.prefix_source()
    if prefix is not None:
        key, value = _with_prefix(key, prefix[0]), _with_prefix(value, prefix[1])
        attention_mask = _widened(attention_mask, prefix[0].shape[1])
    return _kernel(module)(module, query, key, value, attention_mask, **kwargs)


def _with_prefix(tokens: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Puts a prefix without the first axis before keys or values, shape (batch, heads, tokens, head width)."""
    return torch.cat([prefix.to(tokens.dtype).expand(len(tokens), -1, -1, -1), tokens], dim=2)


def _widened(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask with `length` additional columns in front, which every query may see."""
    if mask is None:
        return None
    return nn.functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _kernel(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    name = attention_implementation(module.plain_config)
    # A prefix widens the mask.
    if name not in MASKED_PAIRWISE:
        raise ValueError(f"prefix tuning needs attn_implementation {' or '.join(MASKED_PAIRWISE)}, not {name!r}")
    return attention_kernel(module, name)


def disentangled_attention(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """DeBERTa's attention with a prefix: `DisentangledSelfAttention.forward` of transformers 5, which has no interface.

    The prefix takes part only in the content-to-content term.

    Args:
        module: The attention module; its `prefix_source` gives keys and values of shape (heads, length, head width).
        hidden_states: Shape (batch, tokens, d).
        attention_mask: Zero where a key is hidden, shape (batch, 1, tokens, tokens).
        output_attentions: Whether to return the probabilities.
        query_states: States for the queries, if other than `hidden_states`; shape (batch, tokens, d).
        relative_pos: Relative distances of tokens, as the library computes them.
        rel_embeddings: The table of relative positions.

    Returns:
        Context of shape (batch, tokens, d), and the probabilities if requested, else None.
    """
    keys, values = module.prefix_source()
    heads, length, _ = keys.shape
    split = module.transpose_for_scores
    query = split(module.query_proj(hidden_states if query_states is None else query_states), heads)
    key, value = split(module.key_proj(hidden_states), heads), split(module.value_proj(hidden_states), heads)
    batch = hidden_states.shape[0]

    def repeated(part: torch.Tensor) -> torch.Tensor:
        return part.to(query.dtype).repeat(batch, 1, 1)

    num_terms = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    # Divided in the same way as in the library, so that a prefix of no weight changes no bit.
    scale = torch.sqrt(torch.tensor(query.size(-1), dtype=torch.float) * num_terms).to(query.dtype)
    scores = torch.bmm(query, key.transpose(-1, -2) / scale)
    if module.relative_attention:
        embeddings = module.pos_dropout(rel_embeddings)
        scores = scores + module.disentangled_attention_bias(query, key, relative_pos, embeddings, num_terms)
    scores = torch.cat([torch.bmm(query, repeated(keys).transpose(-1, -2) / scale), scores], dim=-1)
    mask = nn.functional.pad(attention_mask.bool(), (length, 0), value=True)
    scores = scores.view(batch, heads, *scores.shape[1:]).masked_fill(~mask, torch.finfo(query.dtype).min)
    probabilities = module.dropout(scores.softmax(dim=-1))
    context = torch.bmm(probabilities.flatten(0, 1), torch.cat([repeated(values), value], dim=1))
    context = context.view(batch, heads, *context.shape[1:]).transpose(1, 2).flatten(2)
    return context, probabilities if output_attentions else None


def biased_attention(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    """MPNet's attention with a prefix: `MPNetSelfAttention.forward` of transformers 5, which has no interface.

    Args:
        module: See `disentangled_attention`, also for `hidden_states` and `output_attentions`.
        hidden_states: See `module`.
        attention_mask: Added to the scores, shape (batch, 1, 1 or tokens, tokens).
        position_bias: Added to the scores for the distance between tokens, shape (batch, heads, tokens, tokens).
        output_attentions: See `module`.

    Returns:
        The output of shape (batch, tokens, d), and the probabilities if requested.
    """
    keys, values = module.prefix_source()
    heads, length, width = keys.shape
    split = (project(hidden_states).unflatten(-1, (heads, width)) for project in (module.q, module.k, module.v))
    query, key, value = (part.transpose(1, 2) for part in split)
    scores = query @ _with_prefix(key, keys).transpose(-1, -2) / math.sqrt(width)
    for term in (position_bias, attention_mask):
        scores = scores if term is None else scores + nn.functional.pad(term, (length, 0))
    probabilities = module.dropout(scores.softmax(dim=-1))
    context = module.o((probabilities @ _with_prefix(value, values)).transpose(1, 2).flatten(2))
    return (context, probabilities) if output_attentions else (context,)


# Attention that does not go through transformers' interface, by the name of its class.
OWN_ATTENTION: Any = {"DisentangledSelfAttention": disentangled_attention, "MPNetSelfAttention": biased_attention}

ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, prefixed_attention)


class Reparametrization(nn.Module):
    """Embedding, linear, tanh, linear (Li & Liang 2021; P-tuning v2's `prefix_projection`).

    Args:
        length: Prefix vectors per layer.
        hidden_size: Width d of the model.
        mlp_hidden: Width h of the network.
        num_layers: Number of adapted layers.
        init_std: Standard deviation of the embedding at the start.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        length: int,
        hidden_size: int,
        mlp_hidden: int,
        num_layers: int,
        init_std: float,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, hidden_size, device=device))
        self.hidden = nn.Linear(hidden_size, mlp_hidden, device=device)
        self.output = nn.Linear(mlp_hidden, num_layers * 2 * hidden_size, device=device)
        self.hidden_size = hidden_size
        nn.init.normal_(self.embedding, std=init_std)

    def forward(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each of shape (length, d), of the adapted layer with this index."""
        hidden = torch.tanh(self.hidden(self.embedding))
        rows = slice(index * 2 * self.hidden_size, (index + 1) * 2 * self.hidden_size)
        both = nn.functional.linear(hidden, self.output.weight[rows], self.output.bias[rows])
        keys, values = both.chunk(2, dim=-1)
        return keys, values


class PrefixLayer(TunerLayer):
    """Gives the wrapped attention module additional keys and values.

    The prefixes are parameters of this layer, or computed by a network that the first adapted layer has for all layers.
    """

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_network")
    other_param_names = ("prefix_dropout", "prefix_place")
    unmergeable: ClassVar[str | None] = "attention has no weights that could represent further keys and values"

    def __init__(self, base_layer: nn.Module, hidden_size: int, num_heads: int) -> None:
        super().__init__(base_layer)
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.prefix_key = nn.ParameterDict({})
        self.prefix_value = nn.ParameterDict({})
        self.prefix_network = nn.ModuleDict({})
        self.prefix_dropout: dict[str, float] = {}
        # By adapter: this layer's index among the adapted layers, and the first of these, which has the network.
        self.prefix_place: dict[str, tuple[int, PrefixLayer]] = {}
        self.own_attention = OWN_ATTENTION.get(type(base_layer).__name__)
        self._redirect(cast("Any", base_layer))

    def _redirect(self, attention: Any) -> None:
        """Makes this attention module, and no other, look up our attention function."""
        attention.prefix_source = self.prefix
        if self.own_attention is None:
            attention.plain_config = attention.config
            attention.config = copy.copy(attention.config)
            set_attention_implementation(attention.config, IMPLEMENTATION)

    def restore(self) -> None:
        """Undoes what `__init__` did to the attention module."""
        attention = cast("Any", self.base_layer)
        del attention.prefix_source
        if self.own_attention is None:
            attention.config = attention.plain_config
            del attention.plain_config

    def update_layer(
        self,
        adapter_name: str,
        config: Any,
        device: torch.device | None = None,
        fellows: tuple[PrefixLayer, ...] = (),
        num_layers: int = 1,
    ) -> None:
        """Adds another adapter.

        Args:
            adapter_name: Its name.
            config: A `PrefixConfig`.
            device: Where the parameters are made.
            fellows: The layers that have this adapter already.
            num_layers: How many layers will have it.
        """
        self.prefix_dropout[adapter_name] = config.dropout
        self.prefix_place[adapter_name] = (len(fellows), fellows[0] if fellows else self)
        # A loaded adapter has plain prefixes.
        if config.mlp_hidden is None:
            shape = (config.length, self.hidden_size)
            self._set_plain(adapter_name, *(torch.randn(shape, device=device) * config.init_std for _ in range(2)))
        elif not fellows:
            self.prefix_network[adapter_name] = Reparametrization(
                config.length, self.hidden_size, config.mlp_hidden, num_layers, config.init_std, device
            )

    def _set_plain(self, name: str, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.prefix_key[name], self.prefix_value[name] = nn.Parameter(keys), nn.Parameter(values)

    def keys_and_values(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefixes of one adapter, each of shape (length, d)."""
        if name in self.prefix_key:
            return self.prefix_key[name], self.prefix_value[name]
        index, holder = self.prefix_place[name]
        return cast("Reparametrization", holder.prefix_network[name])(index)

    def drop_network(self, name: str) -> None:
        """Turns computed prefixes into plain ones with the same values."""
        if name in self.prefix_place and name not in self.prefix_key:
            keys, values = self.keys_and_values(name)
            self._set_plain(name, keys.detach().clone(), values.detach().clone())

    def active_prefixes(self) -> list[str]:
        """Names of the adapters that are active now."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.prefix_place]

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of the active adapters, each of shape (heads, length, head width); None without any."""
        if not (names := self.active_prefixes()):
            return None
        parts = []
        for name in names:
            rate = self.prefix_dropout[name]
            parts.append([nn.functional.dropout(part, rate, self.training) for part in self.keys_and_values(name)])
        keys, values = (torch.cat(group) for group in zip(*parts, strict=True))
        shape = (self.num_heads, self.hidden_size // self.num_heads)
        return keys.unflatten(-1, shape).transpose(0, 1), values.unflatten(-1, shape).transpose(0, 1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped attention returns."""
        if self.own_attention is not None and self.active_prefixes():
            return self.own_attention(self.base_layer, *args, **kwargs)
        return self.base_layer(*args, **kwargs)


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
        attention = anatomy.get_layers(self.model)[0].get_submodule(anatomy.self_attention)
        if type(attention).__name__ not in OWN_ATTENTION and not hasattr(attention, "config"):
            raise ValueError(f"{type(attention).__name__} does not go through transformers' attention interface")
        return anatomy.layer_pattern(layers, ("self_attention",))

    def create_layer(self, peft_config: PrefixConfig, target: nn.Module, key: str) -> PrefixLayer:
        """See `AnatomyTuner.create_layer`."""
        config: Any = self.model.config
        return PrefixLayer(target, config.hidden_size, config.num_attention_heads)

    def extend_layer(self, layer: PrefixLayer, adapter_name: str, peft_config: PrefixConfig) -> None:
        """See `AnatomyTuner.extend_layer`; a network must know how many layers it computes prefixes for."""
        names = [name for name, _ in self.model.named_modules()]
        num_layers = sum(re.fullmatch(str(peft_config.target_modules), name) is not None for name in names)
        fellows = tuple(other for other in _prefix_layers(self.model) if adapter_name in other.prefix_place)
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
        prefixes = {}
        for name, module in model.named_modules():
            if isinstance(module, PrefixLayer) and adapter_name in module.prefix_place:
                keys, values = module.keys_and_values(adapter_name)
                prefixes[f"{name}.prefix_key.{adapter_name}"] = keys.detach()
                prefixes[f"{name}.prefix_value.{adapter_name}"] = values.detach()
        return prefixes

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Loaded prefixes are plain, so they replace a network that computed this adapter's prefixes until now."""
        layers = _prefix_layers(model)
        for layer in layers:
            layer.drop_network(adapter_name)
        for layer in layers:
            if adapter_name in layer.prefix_network:
                del layer.prefix_network[adapter_name]
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _prefix_layers(model: nn.Module) -> list[PrefixLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]
