"""PEFT config of CoDA."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftType
from transformers.activations import ACT2FN

from petl_bench.methods.base import LayerwiseConfig

ATTENTIONS = ("k2k", "k2all")
ROUTERS = ("learned", "random", "first", "norm")
SOLVERS = ("exact", "iterative")


@dataclass
class CodaConfig(LayerwiseConfig):
    """Configuration of a `CodaModel`.

    Args:
        bottleneck: Width m of the parallel adapter that every token takes.
        reduction: r = n/k, the share of a sequence's n tokens that pass the frozen layer; 1 is the plain parallel
            adapter, without a router.
        attention: `k2k`: routed tokens attend to routed tokens; `k2all`: to all tokens.
        router: `learned`, or an ablation: `random` positions (drawn once a layer), the `first` k tokens, or the k of
            largest `norm`.
        solver: `exact` closed form of the soft top-k, or the `iterative` one the paper reports.
        epsilon: Temperature of the soft top-k.
        iterations: Steps of the iterative solver.
        epsilon_start: Temperature of its first step.
        epsilon_decay: Factor on its temperature from step to step, down to `epsilon`.
        straight_through: Let routed tokens weigh exactly 1 in the forward pass, with the soft weight's gradient.
        force_first: Always route the first token, with weight 1, as classifiers read it. Ours: the paper's T5 has no
            such token.
        router_std: Standard deviation of the router at the start; 0 would leave nothing but ties.
        activation: Activation of the adapter.
        train_layernorm: Whether the backbone's norms are trained too.
    """

    bottleneck: int = field(default=64, metadata={"help": "Width of the parallel adapter."})
    reduction: float = field(default=3.0, metadata={"help": "n/k; 1: no router."})
    attention: str = field(default="k2k", metadata={"help": "k2k or k2all."})
    router: str = field(default="learned", metadata={"help": "learned, random, first or norm."})
    solver: str = field(default="exact", metadata={"help": "exact or iterative."})
    epsilon: float = field(default=0.03, metadata={"help": "Temperature of the soft top-k."})
    iterations: int = field(default=20, metadata={"help": "Steps of the iterative solver."})
    epsilon_start: float = field(default=4.0, metadata={"help": "Temperature of its first step."})
    epsilon_decay: float = field(default=0.7, metadata={"help": "Factor on its temperature."})
    straight_through: bool = field(default=False, metadata={"help": "Routed tokens weigh 1 in the forward pass."})
    force_first: bool = field(default=True, metadata={"help": "Always route the first token."})
    router_std: float = field(default=0.02, metadata={"help": "Standard deviation of the router at the start."})
    activation: str = field(default="gelu", metadata={"help": "Activation of the adapter."})
    train_layernorm: bool = field(default=False, metadata={"help": "Train the norms."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.coda import model  # noqa: F401

        self.peft_type = PeftType("CODA")
        for name, allowed in (("attention", ATTENTIONS), ("router", ROUTERS), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        if self.bottleneck < 1 or self.iterations < 1:
            raise ValueError("bottleneck and iterations must be at least 1")
        if not self.reduction >= 1:
            raise ValueError(f"reduction={self.reduction} must be at least 1")
        for name in ("epsilon", "epsilon_start", "router_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        if not 0 < self.epsilon_decay < 1:
            raise ValueError(f"epsilon_decay={self.epsilon_decay} must lie between 0 and 1")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation} is not in transformers' table")

    @property
    def routes(self) -> bool:
        """Whether any token skips a layer."""
        return self.reduction > 1
