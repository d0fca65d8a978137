"""Full fine-tuning of the layers that hidden-state variability chooses (Xie et al., Findings of EMNLP 2022)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class LayerSelectionMethodConfig(MethodConfig):
    """Layer selection has no settings of its own: those of `layers=variability` are its settings."""

    name: str = "layer_selection"


register(
    Method(
        name="layer_selection",
        summary="full fine-tuning of the layers that layers=variability chooses",
        origin="paper, authors' code",
        config=LayerSelectionMethodConfig,
        # The choice is the layer plan's, and fits every method; what is left is full fine-tuning.
        adapt="petl_bench.methods.full.adapt:adapt",
        ships_yaml=True,
    )
)
