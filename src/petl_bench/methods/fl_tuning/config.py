"""PEFT config of FL-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.methods.base import LayerwiseConfig
from petl_bench.methods.fl_tuning import FlTuningSettings


@dataclass
class FlTuningConfig(FlTuningSettings, LayerwiseConfig):
    """Configuration of an `FlTuningModel`: the options of `FlTuningSettings` and the layers of `LayerwiseConfig`."""

    method = "fl_tuning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units < 1:
            raise ValueError(f"units={self.units} must be at least 1")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")
