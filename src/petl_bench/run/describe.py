"""What a record says of a run: protocol, data, layers, time, memory, and what is measured after training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.methods.hooks import merged
from petl_bench.records.schema import (
    Data,
    DeviceMemory,
    Flops,
    Inference,
    Layers,
    Memory,
    MemoryEstimate,
    Protocol,
    Time,
)
from petl_bench.tasks.load import Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from petl_bench.estimate.costs import Costs
    from petl_bench.measure.device_memory import PeakMemory
    from petl_bench.measure.speed import InferenceTimes
    from petl_bench.training.state import FitResult


def describe_layers(backbone: Backbone) -> Layers:
    """The layers of a plan that the settings gave."""
    plan = backbone.plan
    return Layers(plan.bottom, plan.top, plan.head, plan.num_layers)


def describe_data(cfg: RunConfig, task: Task) -> Data:
    """The rows in use, and where they came from."""
    settings = cfg.task
    names = {"demo": "petl_bench demo", "files": "local files"}
    local = settings.source == "hub" and cfg.data_root is not None
    return Data(
        dataset=names.get(settings.source)
        or f"{settings.dataset}/{settings.subset}" + (" (local copy)" if local else ""),
        revision=None if local else settings.revision,
        fingerprint=task.fingerprint(),
        rows_per_split=task.rows_per_split(),
    )


def describe_protocol(cfg: RunConfig, task: Task, model: nn.Module, accelerator: Accelerator) -> Protocol:
    """What was asked and how it is scored."""
    model_config: Any = accelerator.unwrap_model(model).config
    return Protocol(
        task=cfg.task.name,
        metric=cfg.task.metric,
        higher_is_better=task.higher_is_better,
        selection_split=task.selection_split,
        report_split=task.report_split,
        selection=cfg.train.selection,
        num_train_examples=len(task.train),
        num_eval_examples=len(task.report),
        max_length=cfg.task.max_length,
        seed=cfg.train.seed,
        precision=cfg.train.precision,
        attention_implementation=getattr(model_config, "_attn_implementation", None),
        batching=cfg.train.batching,
    )


def describe_time(result: FitResult, features_seconds: float | None, accelerator: Accelerator) -> Time:
    """Throughput over all processes; the seconds are this process's."""
    import torch

    warm = result.warm_up
    sums = torch.tensor(
        [
            result.num_tokens,
            result.num_padded_tokens,
            result.num_tokens - warm.num_tokens,
        ],
        dtype=torch.float64,
    )
    tokens, padded, timed_tokens = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
    seconds = result.train_seconds - warm.train_seconds
    return Time(
        train_seconds=result.train_seconds,
        eval_seconds=result.eval_seconds,
        features_seconds=features_seconds,
        train_examples_per_second=(result.num_examples - warm.num_examples) / seconds,
        train_tokens_per_second=timed_tokens / seconds,
        padding_share=1.0 - tokens / padded,
        warm_up_updates=warm.num_steps,
        warm_up_seconds=warm.train_seconds,
    )


def describe_memory(memory: PeakMemory, estimate: MemoryEstimate | None) -> Memory:
    """Peaks by phase: of the process always, of the device where there is one."""
    load, train, evaluation = (memory.phases[name] for name in ("load", "train", "eval"))
    first = memory.phases.get("first_updates", train)
    device = None
    if train.device_allocated_bytes is not None:
        device = DeviceMemory(
            load_peak_allocated_bytes=load.device_allocated_bytes,
            load_peak_reserved_bytes=load.device_reserved_bytes,
            first_updates_peak_allocated_bytes=first.device_allocated_bytes,
            first_updates_peak_reserved_bytes=first.device_reserved_bytes,
            train_peak_allocated_bytes=train.device_allocated_bytes,
            train_peak_reserved_bytes=train.device_reserved_bytes,
            eval_peak_allocated_bytes=evaluation.device_allocated_bytes,
            eval_peak_reserved_bytes=evaluation.device_reserved_bytes,
            alloc_retries=memory.alloc_retries,
            held_before_bytes=memory.device_held_before_bytes,
        )
    return Memory(estimate=estimate, device=device, process_peak_rss_bytes=memory.process_peak_rss_bytes)


# Of the training's time, for the repeats of the inference measurement.
INFERENCE_SHARE = 0.03

_log = logging.getLogger(__name__)

_counted: dict[str, Costs] = {}


def predict_costs(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> tuple[Memory | None, Flops | None]:
    """The ledger of one update and its operations, as `petl-bench plan` counts them."""
    from petl_bench.estimate.costs import cost_key, estimate_costs

    try:
        # Runs of a sweep that differ in a seed or a rate cost the same.
        key = cost_key(cfg, backbone.plan, labels)
        costs = _counted[key] if key in _counted else _counted.setdefault(key, estimate_costs(cfg, backbone, labels))
    except Exception as error:  # a method from elsewhere may need tensors with content
        _log.warning("the ledger could not be counted: %s (measure.ledger=false leaves it out)", _first_line(error))
        _log.debug("the ledger could not be counted", exc_info=error)
        return None, None
    estimate = costs.estimate
    _log.info(
        "one update of %d rows x %d tokens: %.0f MiB estimated",
        *(estimate.batch_size, estimate.sequence_length, estimate.peak_bytes / 2**20),
    )
    return Memory(estimate=estimate), costs.flops


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
