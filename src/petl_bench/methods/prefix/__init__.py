"""Prefix tuning in every layer (Li & Liang, ACL 2021; P-tuning v2, arXiv 2110.07602), on every encoder."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting


@dataclass
class PrefixSettings:
    """Options of prefix tuning."""

    length: int = setting(
        20, "Number l of prefix vectors for the keys, and for the values, of every layer.", search=[5, 10, 20, 40]
    )
    mlp_hidden: int | None = setting(
        None,
        "Hidden width of a network that computes all prefixes during training (Li & Liang 2021, section "
        "4.3). None: the prefixes are trained directly. Only the prefixes are saved, not the network.",
    )
    dropout: float = setting(
        0.1, "Dropout on the prefixes during training; P-tuning v2 uses the model's hidden dropout."
    )
    init_std: float = setting(0.02, "Standard deviation of the prefixes, or of the network's input, at the start.")


register(
    Method(
        name="prefix",
        summary="trained key and value vectors in front of every layer's attention",
        origin="authors' code",
        settings=PrefixSettings,
        peft_config="petl_bench.methods.prefix.model:PrefixConfig",
        tuner="petl_bench.methods.prefix.model:PrefixModel",
    )
)
