"""Scales: trained factors on what attention and the feed-forward network add to each layer's input.

`petl-bench list` imports this module, so it imports neither torch nor PEFT; `model.py` does.
"""

from dataclasses import dataclass

from petl_bench.methods.registry import Method
from petl_bench.settings import setting


@dataclass
class ScalesSettings:
    """Options of scales."""

    init_std: float = setting(0.02, "Standard deviation of the factors, around 1, at first.")


SCALES = Method(
    name="scales",
    summary="a factor for each unit that attention and feed-forward network add",
    origin="reconstruction",
    settings=ScalesSettings,
    peft_config="my_scales.model:ScalesConfig",
    tuner="my_scales.model:ScalesModel",
    default_learning_rate=1e-2,
)
