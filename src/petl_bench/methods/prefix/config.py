"""PEFT config of prefix tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftType

from petl_bench.methods.base import LayerwiseConfig


@dataclass
class PrefixConfig(LayerwiseConfig):
    """Configuration of a `PrefixModel`.

    Args:
        length: Prefix vectors l for the keys, and as many for the values, of every layer.
        mlp_hidden: Hidden width of a network that computes all prefixes during training (Li & Liang 2021, section 4.3);
            None: they are trained directly. It is dropped at save: what is kept are the prefixes.
        dropout: Dropout on the prefixes during training (P-tuning v2 uses the model's hidden dropout).
        init_std: Standard deviation of the prefixes (or of the network's input) at the start.
    """

    length: int = field(default=20, metadata={"help": "Prefix vectors per layer."})
    mlp_hidden: int | None = field(default=None, metadata={"help": "Width of the reparametrisation; None: without."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the prefixes."})
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the prefixes at the start."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.prefix import model  # noqa: F401

        self.peft_type = PeftType("PREFIX")
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")
        if self.mlp_hidden is not None and self.mlp_hidden < 1:
            raise ValueError(f"mlp_hidden={self.mlp_hidden} must be at least 1, or null")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in 0..1")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")

    def to_dict(self) -> dict[str, Any]:
        """What is saved with the adapter: plain prefixes, whatever computed them in training."""
        return super().to_dict() | {"mlp_hidden": None}
