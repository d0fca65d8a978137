"""Full fine-tuning: every parameter of the adapted layers is trained."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class FullMethodConfig(MethodConfig):
    """Full fine-tuning has no settings of its own."""

    name: str = "full"


register(
    Method(
        name="full",
        summary="every parameter is trained",
        origin="transformers",
        config=FullMethodConfig,
        adapt="petl_bench.methods.full.adapt:adapt",
        ships_yaml=True,
    )
)
