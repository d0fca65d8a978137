"""Linear probe: the head alone is trained."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class HeadMethodConfig(MethodConfig):
    """Settings of the linear probe.

    Attributes:
        pooler: Train the dense layer below the classifier too. BERT keeps it, pretrained, outside the head; the other
            architectures have it in their heads, where it is trained anyway.
    """

    name: str = "head"
    pooler: bool = False


register(
    Method(
        name="head",
        summary="the head alone (linear probe), or with the pooler below it",
        origin="PEFT",
        config=HeadMethodConfig,
        adapt="petl_bench.methods.head.adapt:adapt",
        ships_yaml=True,
    )
)
