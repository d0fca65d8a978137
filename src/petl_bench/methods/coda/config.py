"""PEFT config of CoDA."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.activations import ACT2FN

from petl_bench.methods.base import LayerwiseConfig
from petl_bench.methods.coda import CodaSettings

ATTENTIONS = ("k2k", "k2all")
ROUTERS = ("learned", "random", "first", "norm")
SOLVERS = ("exact", "iterative")


@dataclass
class CodaConfig(CodaSettings, LayerwiseConfig):
    """Configuration of a `CodaModel`: the options of `CodaSettings` and the layers of `LayerwiseConfig`."""

    method = "coda"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("attention", ATTENTIONS), ("router", ROUTERS), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
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

    @property
    def routes(self) -> bool:
        """Whether some tokens skip the layers."""
        return self.reduction > 1
