"""CoDA: conditional adapters, which let only some tokens pass each frozen layer (arXiv 2304.04947)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting

ROUTERS = ("learned", "random", "first", "norm")


@dataclass
class CodaSettings:
    """Options of CoDA."""

    bottleneck: int = setting(
        64, "Width m of the parallel adapter, which every token passes.", search=[8, 16, 32, 64, 128]
    )
    reduction: float = setting(
        3.0,
        "r = n / k: k of the n tokens of a sequence pass the frozen layer. 1 is a plain parallel adapter, "
        "without a router.",
    )
    attention: str = setting(
        "k2k",
        "k2k: routed tokens attend to routed tokens. k2all: they attend to all tokens, which is slower and "
        "learns far more where sentences are short.",
        choices=("k2k", "k2all"),
    )
    router: str = setting(
        "learned",
        "learned, or an ablation: random positions (drawn once for each layer), the first k tokens, or the "
        "k tokens of the largest norm.",
        choices=ROUTERS,
    )
    last_router: str = setting(
        "norm",
        "What takes the place of a learned router in the last layer, where the head reads the first token "
        "alone and that token is always routed: no router could learn there. norm, first or random, or learned as "
        "in older adapters.",
        choices=ROUTERS,
    )
    solver: str = setting(
        "exact",
        "exact: closed form of the soft top-k. iterative: the solver that the paper reports.",
        choices=("exact", "iterative"),
    )
    epsilon: float = setting(0.03, "Temperature of the soft top-k.")
    iterations: int = setting(20, "Steps of the iterative solver.")
    epsilon_start: float = setting(4.0, "Temperature of the iterative solver's first step.")
    epsilon_decay: float = setting(0.7, "Factor on its temperature from step to step, down to epsilon.")
    straight_through: bool = setting(
        False, "Give routed tokens the weight 1 in the forward pass, with the gradient of the soft weight."
    )
    force_first: bool = setting(
        True, "Always route the first token, which classifiers read, with weight 1. The paper's T5 has no such token."
    )
    router_std: float = setting(0.02, "Standard deviation of the router at the start; with 0 all tokens would be tied.")
    activation: str = setting("gelu", "Activation of the adapter.")
    train_layernorm: bool = setting(False, "Also train the norms of the backbone.")


@dataclass
class CodaPretraining:
    """Options of the training phase without labels (`petl_bench.methods.coda.distillation`)."""

    attention: str = setting(
        "both",
        "The form of attention that is trained: k2k, k2all, or both, one after the other, so that one set "
        "of weights serves either.",
        choices=("both", "k2k", "k2all"),
    )
    k2all_share: float = setting(0.7, "With both: the share of the updates that k2all gets.")
    largest_reduction: float = setting(6.0, "The largest reduction r = n / k that is trained.")
    widening_share: float = setting(0.3, "Share of the updates in which the largest reduction grows, from 2.")
    compared: str = setting(
        "tokens",
        "What is compared with the dense encoder after each layer. tokens: the states of all tokens; mean: "
        "their mean, which a head with backbone.pooling=mean reads.",
        choices=("tokens", "mean"),
    )
    first_token_weight: float = setting(4.0, "How often the first token counts, which classifiers read.")
    inner_weight: float = setting(
        1.0, "Weight of the states below the last layer, each of which counts 1/L; 0: the last alone."
    )
    norm_learning_rate: float = setting(1e-4, "Learning rate of the norms.")


register(
    Method(
        name="coda",
        summary="parallel adapters for all tokens; a router picks those that pass each frozen layer",
        origin="reconstruction",
        settings=CodaSettings,
        peft_config="petl_bench.methods.coda.model:CodaConfig",
        tuner="petl_bench.methods.coda.model:CodaModel",
        pretraining="petl_bench.methods.coda.distillation:CodaDistillation",
    )
)
