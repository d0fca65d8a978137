"""LoRA, PEFT's own (Hu et al., ICLR 2022, arXiv 2106.09685)."""

from dataclasses import dataclass, field

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class LoraMethodConfig(MethodConfig):
    """Settings of LoRA; conf/method/lora.yaml holds the values."""

    name: str = "lora"
    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["query", "value"])


register(
    Method(
        name="lora",
        summary="low-rank updates of chosen projections",
        origin="PEFT",
        config=LoraMethodConfig,
        adapt="petl_bench.methods.lora.adapt:adapt",
        ships_yaml=True,
    )
)
