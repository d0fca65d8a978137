"""What a run measures beside its scores. Where a measurement fails the run goes on without it, and says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.methods.merge import merged
from petl_bench.records.schema import Flops, Inference, Memory

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from petl_bench.costs import Costs
    from petl_bench.measure.speed import InferenceTimes

# Of the training's time, for the repeats of the inference measurement.
INFERENCE_SHARE = 0.03

_log = logging.getLogger(__name__)
_counted: dict[str, Costs] = {}


def predict_costs(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> tuple[Memory | None, Flops | None]:
    """The ledger of one update and its operations, as `petl-bench plan` counts them."""
    from petl_bench.costs import cost_key, count_costs

    try:
        # Runs of a sweep that differ in a seed or a rate cost the same.
        key = cost_key(cfg, backbone.plan, labels)
        costs = _counted[key] if key in _counted else _counted.setdefault(key, count_costs(cfg, backbone, labels))
    except Exception as error:  # a method from elsewhere may need tensors with content
        _log.warning("the ledger could not be counted: %s (measure.ledger=false leaves it out)", _first_line(error))
        _log.debug("the ledger could not be counted", exc_info=error)
        return None, None
    ledger = costs.ledger
    _log.info(
        "one update of %d rows x %d tokens: %.0f MiB by the ledger",
        *(ledger.batch_size, ledger.sequence_length, ledger.peak_bytes / 2**20),
    )
    return Memory(ledger=ledger), costs.flops


def time_inference(
    model: nn.Module, sequence_length: int, seconds: float, accelerator: Accelerator
) -> Inference | None:
    """Latency and throughput of the trained model, its adapter merged where the method can; the model is used up."""
    from petl_bench.measure.speed import time_forward

    try:
        plain, is_merged = merged(model)
        times = time_forward(plain, sequence_length=sequence_length, seconds=seconds, autocast=accelerator.autocast)
    except Exception as error:  # the run is done: nothing of it may be lost now
        _log.warning("inference could not be timed: %s (measure.inference=false leaves it out)", _first_line(error))
        _log.debug("inference could not be timed", exc_info=error)
        return None
    return _describe(times, sequence_length, is_merged=is_merged)


def _describe(times: InferenceTimes, sequence_length: int, *, is_merged: bool) -> Inference:
    from petl_bench.measure.speed import BATCH_SIZE, quartiles

    lower, median, upper = (1000 * seconds for seconds in quartiles(times.one_row))
    slow, middle, fast = (BATCH_SIZE / seconds for seconds in reversed(quartiles(times.batch)))
    return Inference(
        batch_size=BATCH_SIZE,
        sequence_length=sequence_length,
        latency_ms_median=median,
        examples_per_second=middle,
        latency_ms_quartiles=[lower, upper],
        examples_per_second_quartiles=[slow, fast],
        repeats=min(len(times.one_row), len(times.batch)),
        merged=is_merged,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
