"""Modules with a bottleneck adapter at their output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from petl_bench.methods.base import TunerLayer
from petl_bench.methods.bottleneck import Bottleneck


class SerialAdapter(TunerLayer):
    """Adds `A(y)` to the output y of the wrapped module: the last one before the residual, so after its dropout."""

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
    """Carries the feed-forward network's input to its end, within one forward of one layer."""

    def __init__(self) -> None:
        self.input: torch.Tensor | None = None


class ParallelStart(TunerLayer):
    """Where the feed-forward network begins: remembers its input. Has no parameters."""

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
    """Where the feed-forward network ends: adds the update for its *input*."""

    def __init__(self, base_layer: nn.Module, hidden_size: int, model_activation: str, relay: Relay) -> None:
        super().__init__(base_layer, hidden_size, model_activation)
        self.relay = relay

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Shape (batch, tokens, d)."""
        output: torch.Tensor = self.base_layer(*args, **kwargs)
        # Taken, so that no activation outlives the forward.
        start, self.relay.input = self.relay.input, None
        update = None if start is None else self.update(start)
        return output if update is None else output + update
