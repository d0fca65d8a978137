"""An attention module with trained prefixes."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, cast

import torch
from torch import nn

from petl_bench.methods.prefix.attention import IMPLEMENTATION, disentangled_attention
from petl_bench.methods.prefix.reparametrization import Reparametrization
from petl_bench.methods.tuner import TunerLayer


class PrefixLayer(TunerLayer):
    """Gives the wrapped attention module further keys and values.

    The prefixes are parameters of this layer, or computed by a network that the first adapted layer holds for all.
    """

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_network")
    unmergeable: ClassVar[str | None] = "attention has no weights that could stand for further keys and values"

    def __init__(
        self, base_layer: nn.Module, hidden_size: int, num_heads: int, index: int, first: PrefixLayer | None
    ) -> None:
        super().__init__(base_layer)
        self.hidden_size, self.num_heads, self.index = hidden_size, num_heads, index
        # In a list, so that the network is not registered a second time.
        self._first = [first] if first is not None else []
        self.prefix_key = nn.ParameterDict({})
        self.prefix_value = nn.ParameterDict({})
        self.prefix_network = nn.ModuleDict({})
        self.prefix_dropout: dict[str, float] = {}
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
        self, adapter_name: str, config: Any, device: torch.device | None = None, num_layers: int = 1
    ) -> None:
        """Adds another adapter."""
        self.prefix_dropout[adapter_name] = config.dropout
        # A loaded adapter has plain prefixes.
        if config.mlp_hidden is None:
            for container in (self.prefix_key, self.prefix_value):
                container[adapter_name] = nn.Parameter(torch.empty(config.length, self.hidden_size, device=device))
                nn.init.normal_(container[adapter_name], std=config.init_std)
        elif not self._first:
            self.prefix_network[adapter_name] = Reparametrization(
                config.length, self.hidden_size, config.mlp_hidden, num_layers, config.init_std, device
            )

    def keys_and_values(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefixes of one adapter, each of shape (length, d)."""
        if name in self.prefix_key:
            return self.prefix_key[name], self.prefix_value[name]
        network = (self._first[0] if self._first else self).prefix_network[name]
        return cast("Reparametrization", network)(self.index)

    def active_prefixes(self) -> list[str]:
        """Names of the adapters that act now."""
        if self.disable_adapters:
            return []
        networks = (self._first[0] if self._first else self).prefix_network
        return [name for name in self.active_adapters if name in self.prefix_key or name in networks]

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
