"""Prefix tuning in every layer (Li & Liang, ACL 2021; P-tuning v2, arXiv 2110.07602), on every encoder."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class PrefixMethodConfig(MethodConfig):
    """Settings of prefix tuning; `PrefixConfig` says what each means."""

    name: str = "prefix"
    length: int = 20
    mlp_hidden: int | None = None
    dropout: float = 0.1
    init_std: float = 0.02


register(
    Method(
        name="prefix",
        summary="trained key and value vectors in front of every layer's attention",
        origin="authors' code",
        config=PrefixMethodConfig,
        adapt="petl_bench.methods.prefix.adapt:adapt",
        tuner="petl_bench.methods.prefix.model",
        ships_yaml=True,
    )
)
