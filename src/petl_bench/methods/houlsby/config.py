"""PEFT config of bottleneck adapters, and the placement of their variants."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.activations import ACT2FN

from petl_bench.methods.base import LayerwiseConfig
from petl_bench.methods.bottleneck import INITIALISATIONS
from petl_bench.methods.houlsby import HoulsbySettings

# By variant, the parts of a layer that are wrapped, as the anatomy table names them.
VARIANTS = {
    # Houlsby et al., ICML 2019, section 2.1, and google-research/adapter-bert.
    "houlsby": ("attention_end", "feed_forward_end"),
    # Pfeiffer et al., EACL 2021, and SeqBnConfig of adapters 1.3.0.
    "pfeiffer": ("last_norm",),
    # He et al., ICLR 2022, section 3.3, and ParBnConfig of adapters 1.3.0.
    "parallel": ("feed_forward_in", "feed_forward_end"),
}


@dataclass
class HoulsbyConfig(HoulsbySettings, LayerwiseConfig):
    """Configuration of a `HoulsbyModel`: the options of `HoulsbySettings` and the layers of `LayerwiseConfig`."""

    method = "houlsby"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} must be at least 1")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant} must be one of {', '.join(VARIANTS)}")
        if self.init not in INITIALISATIONS:
            raise ValueError(f"init={self.init} must be one of {', '.join(INITIALISATIONS)}")
        if self.activation != "model" and self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation} is neither `model` nor in transformers' table")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")
        if self.train_layernorm is None:
            self.train_layernorm = self.variant == "houlsby"
        if self.train_layernorm and self.variant == "pfeiffer":
            raise ValueError("variant=pfeiffer adapts the norms themselves, so train_layernorm must be false")
