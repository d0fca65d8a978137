"""CoDA: conditional adapters, which let only some tokens through each frozen layer (arXiv 2304.04947)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class CodaMethodConfig(MethodConfig):
    """Settings of CoDA; `CodaConfig` says what each means."""

    name: str = "coda"
    bottleneck: int = 64
    reduction: float = 3.0
    attention: str = "k2k"
    router: str = "learned"
    solver: str = "exact"
    epsilon: float = 0.03
    iterations: int = 20
    epsilon_start: float = 4.0
    epsilon_decay: float = 0.7
    straight_through: bool = False
    force_first: bool = True
    router_std: float = 0.02
    activation: str = "gelu"
    train_layernorm: bool = False


register(
    Method(
        name="coda",
        summary="parallel adapters for all tokens; a router picks those that pass each frozen layer",
        origin="reconstruction",
        config=CodaMethodConfig,
        adapt="petl_bench.methods.coda.adapt:adapt",
        tuner="petl_bench.methods.coda.model",
        ships_yaml=True,
    )
)
