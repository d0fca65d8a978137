"""Ladder side-tuning for encoders (Sung et al., NeurIPS 2022, arXiv 2206.06522)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting


@dataclass
class LstSettings:
    """Options of ladder side-tuning."""

    reduction: int = setting(
        8, "How many times narrower than the backbone the side network is; the authors use 8.", search=[2, 4, 8, 16]
    )
    width: int | None = setting(None, "Width of the side network. None: it follows from the reduction.")
    temperature: float = setting(0.1, "Temperature T of the gates sigmoid(alpha / T).")
    drop_layers: list[int] = setting(
        [], "Side blocks that are left out, counted from 0; the authors drop 0, 4 and 8 of the 12 of T5-base."
    )
    pool: str = setting("mean", "mean over the tokens, or cls (the first token).", choices=("mean", "cls"))
    dropout: float = setting(0.1, "Dropout in the blocks.")


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
