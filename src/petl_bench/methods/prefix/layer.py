"""An attention module with trained prefixes, and the network that may compute them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

import torch
from torch import nn

from petl_bench.methods.base import TunerLayer
from petl_bench.methods.prefix.attention import IMPLEMENTATION, disentangled_attention


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
    """Gives the wrapped attention module further keys and values.

    The prefixes are parameters of this layer, or computed by a network that the first adapted layer holds for all.
    """

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_network")
    other_param_names = ("prefix_dropout", "prefix_place")
    unmergeable: ClassVar[str | None] = "attention has no weights that could stand for further keys and values"

    def __init__(self, base_layer: nn.Module, hidden_size: int, num_heads: int) -> None:
        super().__init__(base_layer)
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.prefix_key = nn.ParameterDict({})
        self.prefix_value = nn.ParameterDict({})
        self.prefix_network = nn.ModuleDict({})
        self.prefix_dropout: dict[str, float] = {}
        # Of each adapter: this layer's place among those it adapts, and the first of them, which holds the network.
        self.prefix_place: dict[str, tuple[int, PrefixLayer]] = {}
        self.disentangled = hasattr(base_layer, "disentangled_attention_bias")
        self._redirect(cast("Any", base_layer))

    def _redirect(self, attention: Any) -> None:
        """Lets the attention module, and it alone, look up our attention function."""
        attention.prefix_source = self.prefix
        if not self.disentangled:
            attention.plain_config = attention.config
            attention.config = copy.copy(attention.config)
            attention.config._attn_implementation_internal = IMPLEMENTATION

    def restore(self) -> None:
        """Undoes what `__init__` did to the attention module."""
        attention = cast("Any", self.base_layer)
        del attention.prefix_source
        if not self.disentangled:
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
        """Names of the adapters that act now."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.prefix_place]

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of the active adapters, each of shape (heads, length, head width); None without any."""
        names = self.active_prefixes()
        if not names:
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
        if self.disentangled and self.active_prefixes():
            return disentangled_attention(self.base_layer, *args, **kwargs)
        return self.base_layer(*args, **kwargs)
