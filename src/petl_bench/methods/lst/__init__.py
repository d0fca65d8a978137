"""Ladder side-tuning for encoders (Sung et al., NeurIPS 2022, arXiv 2206.06522)."""

from dataclasses import dataclass, field

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class LstMethodConfig(MethodConfig):
    """Settings of ladder side-tuning; `LstConfig` says what each means."""

    name: str = "lst"
    reduction: int = 8
    width: int | None = None
    temperature: float = 0.1
    drop_layers: list[int] = field(default_factory=list)
    pool: str = "mean"
    dropout: float = 0.1


register(
    Method(
        name="lst",
        summary="a narrow transformer beside the frozen backbone, fed by a ladder from every layer",
        origin="authors' code; reconstruction for encoders",
        config=LstMethodConfig,
        adapt="petl_bench.methods.lst.adapt:adapt",
        tuner="petl_bench.methods.lst.model",
        ships_yaml=True,
    )
)
