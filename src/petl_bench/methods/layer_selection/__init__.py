"""Full fine-tuning of the layers that hidden-state variability chooses (Xie et al., Findings of EMNLP 2022)."""

from petl_bench.methods.registry import Method, register

register(
    Method(
        name="layer_selection",
        summary="full fine-tuning of the layers that layers=variability chooses",
        origin="paper, authors' code",
        # The layer plan makes the choice, and can do so for every method. What remains is full fine-tuning.
        adapt="petl_bench.methods.full:adapt",
    )
)
