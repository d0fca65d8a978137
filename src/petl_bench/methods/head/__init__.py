"""Linear probe: the head alone is trained."""

from dataclasses import dataclass

from petl_bench.methods.config import MethodConfig
from petl_bench.methods.registry import Method, register


@dataclass
class HeadMethodConfig(MethodConfig):
    """The linear probe has no settings of its own."""

    name: str = "head"


register(
    Method(
        name="head",
        summary="the head alone, on the frozen backbone (linear probe)",
        origin="PEFT",
        config=HeadMethodConfig,
        adapt="petl_bench.methods.head.adapt:adapt",
        ships_yaml=True,
    )
)
