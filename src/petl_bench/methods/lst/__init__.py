"""Ladder side-tuning for encoders (Sung et al., NeurIPS 2022, arXiv 2206.06522)."""

from dataclasses import dataclass, field

from petl_bench.methods.registry import Method, register


@dataclass
class LstSettings:
    """Options of ladder side-tuning."""

    reduction: int = field(
        default=8,
        metadata={
            "help": "How many times narrower than the backbone the side network is; the authors use 8.",
            "search": [2, 4, 8, 16],
        },
    )
    width: int | None = field(
        default=None, metadata={"help": "Width of the side network. None: it follows from the reduction."}
    )
    temperature: float = field(default=0.1, metadata={"help": "Temperature T of the gates sigmoid(alpha / T)."})
    drop_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Side blocks that are left out, counted from 0; the authors drop 0, 4 and 8 of the 12 of T5-base."
        },
    )
    pool: str = field(
        default="mean",
        metadata={"help": "mean over the tokens, or cls (the first token).", "choices": ("mean", "cls")},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout in the blocks."})


register(
    Method(
        name="lst",
        summary="a narrow transformer parallel to the frozen backbone, connected to every layer",
        origin="authors' code; reconstruction for encoders",
        settings=LstSettings,
        peft_config="petl_bench.methods.lst.model:LstConfig",
        tuner="petl_bench.methods.lst.model:LstModel",
    )
)
