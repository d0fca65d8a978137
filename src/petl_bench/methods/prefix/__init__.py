"""Prefix tuning in every layer (Li & Liang, ACL 2021; P-tuning v2, arXiv 2110.07602), on every encoder."""

from dataclasses import dataclass, field

from petl_bench.methods.registry import Method, register


@dataclass
class PrefixSettings:
    """Options of prefix tuning."""

    length: int = field(
        default=20,
        metadata={
            "help": "Number l of prefix vectors for the keys, and for the values, of every layer.",
            "search": [5, 10, 20, 40],
        },
    )
    mlp_hidden: int | None = field(
        default=None,
        metadata={
            "help": "Hidden width of a network that computes all prefixes during training (Li & Liang 2021, section "
            "4.3). None: the prefixes are trained directly. Only the prefixes are saved, not the network."
        },
    )
    dropout: float = field(
        default=0.1,
        metadata={"help": "Dropout on the prefixes during training; P-tuning v2 uses the model's hidden dropout."},
    )
    init_std: float = field(
        default=0.02,
        metadata={"help": "Standard deviation of the prefixes, or of the network's input, at the start."},
    )


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
