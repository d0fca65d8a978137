"""PEFT config of prefix tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petl_bench.methods.base import LayerwiseConfig
from petl_bench.methods.prefix import PrefixSettings


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
