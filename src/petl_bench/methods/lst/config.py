"""PEFT config of ladder side-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType

from petl_bench.methods.side_network import POOLS


@dataclass
class LstConfig(PeftConfig):
    """Configuration of an `LstModel`; it trains a classifier of its own, so there is no `modules_to_save`.

    Args:
        reduction: The side network is so many times narrower than the backbone; the authors use 8.
        width: Its width, instead of `reduction`.
        temperature: T of the gates `sigmoid(alpha / T)`.
        drop_layers: 0-based side blocks that are left out; the authors drop 0, 4 and 8 of T5-base's 12.
        pool: `mean` over tokens, or `cls`.
        dropout: Dropout in the blocks.
        target_modules: Found by the architecture.
    """

    reduction: int = field(default=8, metadata={"help": "Backbone's width over the side network's."})
    width: int | None = field(default=None, metadata={"help": "Width of the side network; None: by reduction."})
    temperature: float = field(default=0.1, metadata={"help": "Temperature of the gates."})
    drop_layers: list[int] = field(default_factory=list, metadata={"help": "0-based side blocks left out."})
    pool: str = field(default="mean", metadata={"help": "mean or cls."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout in the blocks."})
    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.lst import model  # noqa: F401

        self.peft_type = PeftType("LST")
        if self.reduction < 1 or (self.width is not None and self.width < 1):
            raise ValueError("reduction and width must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be greater than 0")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool} must be one of {', '.join(POOLS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
