"""BitFit: biases only (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class BitFitMethodConfig(MethodConfig):
    """BitFit has no settings of its own."""

    name: str = "bitfit"


register(
    Method(
        name="bitfit",
        summary="every bias of the backbone",
        origin="paper",
        config=BitFitMethodConfig,
        adapt="petl_bench.methods.bitfit.adapt:adapt",
        tuner="petl_bench.methods.bitfit.model",
        ships_yaml=True,
    )
)
