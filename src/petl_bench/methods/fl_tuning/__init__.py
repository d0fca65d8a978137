"""FL-tuning: additional hidden units in every feed-forward network (arXiv 2206.15312)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting


@dataclass
class FlTuningSettings:
    """Options of FL-tuning."""

    units: int = setting(
        160,
        "Hidden units that every feed-forward network gains; the authors use 160 everywhere.",
        search=[16, 64, 160, 256],
    )
    init_std: float = setting(
        0.02,
        "Standard deviation of both new matrices at the start, truncated at two standard deviations; new "
        "biases start at zero.",
    )
    zero_init: bool = setting(
        False,
        "Start the new output matrix at zero, so that the model is unchanged at the start. The authors do not do this.",
    )


register(
    Method(
        name="fl_tuning",
        summary="further hidden units in every feed-forward network",
        origin="authors' code",
        settings=FlTuningSettings,
        peft_config="petl_bench.methods.fl_tuning.model:FlTuningConfig",
        tuner="petl_bench.methods.fl_tuning.model:FlTuningModel",
    )
)
