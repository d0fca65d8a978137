"""Bottleneck adapters (Houlsby et al., ICML 2019, arXiv 1902.00751), with two well-known variants."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting

# The parts of a layer that each variant wraps, by their names in the anatomy table.
VARIANTS = {
    # Houlsby et al., ICML 2019, section 2.1, and google-research/adapter-bert.
    "houlsby": ("attention_end", "feed_forward_end"),
    # Pfeiffer et al., EACL 2021, and SeqBnConfig of adapters 1.3.0.
    "pfeiffer": ("last_norm",),
    # He et al., ICLR 2022, section 3.3, and ParBnConfig of adapters 1.3.0.
    "parallel": ("feed_forward_in", "feed_forward_end"),
}

INITIALISATIONS = ("truncated_normal", "normal", "lora")


@dataclass
class HoulsbySettings:
    """Options of bottleneck adapters."""

    bottleneck: int = setting(64, "Width m of the adapters; the paper uses 8, 64 and 256.", search=[8, 16, 32, 64, 128])
    variant: str = setting(
        "houlsby",
        "houlsby: two serial adapters in each layer. pfeiffer: one serial adapter in each layer, between "
        "the norms of the feed-forward network. parallel: one adapter parallel to the feed-forward network.",
        choices=tuple(VARIANTS),
    )
    activation: str = setting(
        "gelu_pytorch_tanh",
        "An activation of transformers' table, or `model` for that of the backbone. The authors' code uses "
        "the tanh approximation of GELU.",
    )
    init: str = setting(
        "truncated_normal",
        "truncated_normal (truncated at two standard deviations, as in the paper), normal, or lora (the "
        "up-projection starts at zero); or a folder with an adapter to start from.",
        choices=INITIALISATIONS,
    )
    init_std: float = setting(
        0.01,
        "Standard deviation of the weights at the start. The main runs of the paper use 0.01, the authors' code 0.001.",
    )
    scale: float = setting(
        1.0, "Factor on the output of the adapters; He et al. (2022) use 4 for the variant parallel."
    )
    train_layernorm: bool | None = setting(
        None, "Also train the norms of the backbone. None: only with the variant houlsby."
    )


register(
    Method(
        name="houlsby",
        summary="bottleneck adapters after attention and feed-forward network, and the norms",
        origin="paper, authors' code",
        settings=HoulsbySettings,
        peft_config="petl_bench.methods.houlsby.model:HoulsbyConfig",
        tuner="petl_bench.methods.houlsby.model:HoulsbyModel",
    )
)
