"""FLAT: a side network that fuses the representations of all layers (Neural Networks 179, 2024, 106631)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class FlatMethodConfig(MethodConfig):
    """Settings of FLAT; `FlatConfig` says what each means."""

    name: str = "flat"
    width: int | None = None
    score: str = "dot"
    side: str = "transformer"
    num_blocks: int = 2
    pool: str = "mean"
    include_embeddings: bool = True
    dropout: float = 0.1


register(
    Method(
        name="flat",
        summary="a side network that weighs all layers token by token; nothing enters the backbone",
        origin="reconstruction",
        config=FlatMethodConfig,
        adapt="petl_bench.methods.flat.adapt:adapt",
        tuner="petl_bench.methods.flat.model",
        ships_yaml=True,
    )
)
