"""BitFit: only the biases are trained (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from petl_bench.methods.registry import Method, register

register(
    Method(
        name="bitfit",
        summary="every bias of the backbone",
        origin="paper",
        peft_config="petl_bench.methods.bitfit.model:BitFitConfig",
        tuner="petl_bench.methods.bitfit.model:BitFitModel",
        # Which modules have a bias depends on the architecture.
        adapt="petl_bench.methods.bitfit.model:adapt",
    )
)
