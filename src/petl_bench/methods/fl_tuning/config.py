"""PEFT config of FL-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftType

from petl_bench.methods.base import LayerwiseConfig


@dataclass
class FlTuningConfig(LayerwiseConfig):
    """Configuration of an `FlTuningModel`.

    Args:
        units: Hidden units u that every feed-forward network gains; the authors use 160 everywhere.
        init_std: Standard deviation of both new matrices, cut at two standard deviations; new biases start at zero.
        zero_init: Start the new output matrix at zero, so that the model is unchanged at the start. The authors do not.
    """

    units: int = field(default=160, metadata={"help": "Hidden units added to every feed-forward network."})
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of the new weights at the start."})
    zero_init: bool = field(default=False, metadata={"help": "Start as the unchanged model."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.fl_tuning import model  # noqa: F401

        self.peft_type = PeftType("FL_TUNING")
        if self.units < 1:
            raise ValueError(f"units={self.units} must be at least 1")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")
