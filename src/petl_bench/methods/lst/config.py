"""PEFT config of ladder side-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from petl_bench.methods.base import TunerConfig
from petl_bench.methods.lst import LstSettings
from petl_bench.methods.side_network import POOLS


@dataclass
class LstConfig(LstSettings, TunerConfig):
    """Configuration of an `LstModel`: the options of `LstSettings`.

    It has no `modules_to_save`, as the side network brings a classifier of its own.

    Args:
        target_modules: Filled in by the tuner: the encoder and the classifier.
    """

    method = "lst"

    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1 or (self.width is not None and self.width < 1):
            raise ValueError("reduction and width must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be greater than 0")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool} must be one of {', '.join(POOLS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
