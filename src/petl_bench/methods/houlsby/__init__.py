"""Bottleneck adapters (Houlsby et al., ICML 2019, arXiv 1902.00751), with two well-known variants."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class HoulsbyMethodConfig(MethodConfig):
    """Settings of bottleneck adapters; `HoulsbyConfig` says what each means."""

    name: str = "houlsby"
    bottleneck: int = 64
    variant: str = "houlsby"
    activation: str = "gelu_pytorch_tanh"
    init: str = "truncated_normal"
    init_std: float = 0.01
    scale: float = 1.0
    train_layernorm: bool | None = None


register(
    Method(
        name="houlsby",
        summary="bottleneck adapters after attention and feed-forward network, and the norms",
        origin="paper, authors' code",
        config=HoulsbyMethodConfig,
        adapt="petl_bench.methods.houlsby.adapt:adapt",
        tuner="petl_bench.methods.houlsby.model",
        ships_yaml=True,
    )
)
