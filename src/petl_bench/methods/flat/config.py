"""PEFT config of FLAT."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType

from petl_bench.methods.side_network import POOLS

SCORES = ("dot", "additive", "scalar", "uniform", "last")
SIDES = ("transformer", "mlp", "none")


@dataclass
class FlatConfig(PeftConfig):
    """Configuration of a `FlatModel`; it trains a classifier of its own, so there is no `modules_to_save`.

    Args:
        width: Width r of the side network; None: a sixteenth of the model's, at least 16 (48 for BERT-base).
        score: How a token weighs the layers: `dot` (its top state asks), `additive` (each state scores itself),
            `scalar` (the same trained weights for all tokens, as ELMo), `uniform`, or `last` (the top layer alone).
        side: What follows the fusion: `transformer` blocks, `mlp` blocks or `none`.
        num_blocks: Number of those blocks.
        pool: `mean` over tokens, or `cls`.
        include_embeddings: Whether the embeddings count as a layer.
        dropout: Dropout in the blocks.
        target_modules: Found by the architecture.
    """

    width: int | None = field(default=None, metadata={"help": "Width of the side network; None: d/16."})
    score: str = field(default="dot", metadata={"help": "dot, additive, scalar, uniform or last."})
    side: str = field(default="transformer", metadata={"help": "transformer, mlp or none."})
    num_blocks: int = field(default=2, metadata={"help": "Blocks of the side network."})
    pool: str = field(default="mean", metadata={"help": "mean or cls."})
    include_embeddings: bool = field(default=True, metadata={"help": "Count the embeddings as a layer."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout in the blocks."})
    target_modules: str | None = field(default=None, metadata={"help": "Found by the architecture."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.flat import model  # noqa: F401

        self.peft_type = PeftType("FLAT")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1, or null")
        for name, allowed in (("score", SCORES), ("side", SIDES), ("pool", POOLS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        if self.num_blocks < 0:
            raise ValueError(f"num_blocks={self.num_blocks} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
