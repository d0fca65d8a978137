"""PEFT config of FLAT."""

from __future__ import annotations

from dataclasses import dataclass, field

from petl_bench.methods.base import TunerConfig
from petl_bench.methods.flat import FlatSettings
from petl_bench.methods.side_network import POOLS

SCORES = ("dot", "additive", "scalar", "uniform", "last")
SIDES = ("transformer", "mlp", "none")


@dataclass
class FlatConfig(FlatSettings, TunerConfig):
    """Configuration of a `FlatModel`: the options of `FlatSettings`.

    It has no `modules_to_save`, as the side network brings a classifier of its own.

    Args:
        target_modules: Filled in by the tuner: the encoder and the classifier.
    """

    method = "flat"

    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1, or null")
        for name, allowed in (("score", SCORES), ("side", SIDES), ("pool", POOLS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        if self.num_blocks < 0:
            raise ValueError(f"num_blocks={self.num_blocks} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
