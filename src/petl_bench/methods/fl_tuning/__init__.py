"""FL-tuning: further hidden units in every feed-forward network (arXiv 2206.15312)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, MethodConfig, register


@dataclass
class FlTuningMethodConfig(MethodConfig):
    """Settings of FL-tuning; `FlTuningConfig` says what each means."""

    name: str = "fl_tuning"
    units: int = 160
    init_std: float = 0.02
    zero_init: bool = False


register(
    Method(
        name="fl_tuning",
        summary="further hidden units in every feed-forward network",
        origin="authors' code",
        config=FlTuningMethodConfig,
        adapt="petl_bench.methods.fl_tuning.adapt:adapt",
        tuner="petl_bench.methods.fl_tuning.model",
        ships_yaml=True,
    )
)
