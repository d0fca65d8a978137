"""What a run will cost: parameters, memory and operations of one update, without weights, rows or a device."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petl_bench.adapted import build_adapted
from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.methods.merge import merged
from petl_bench.records.schema import Flops, Ledger, LedgerAtPeak, Params

if TYPE_CHECKING:
    from torch import nn

    from petl_bench.measure.ledger import StepCount

# AdaLoRA wants to know; the first update costs the same whatever it is.
_SOME_STEPS = 1000


@dataclass(frozen=True)
class Costs:
    """What one update takes, and one pass at inference.

    Attributes:
        params: Trained and other parameters.
        ledger: Memory by kind.
        flops: Operations.
        course: Bytes held after each event of the update's last pass.
    """

    params: Params
    ledger: Ledger
    flops: Flops
    course: tuple[int, ...]


def count_costs(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> Costs:
    """Counts one update of a run on a copy of its model that has no memory.

    The batch is `train.batch_size` rows of `task.max_length` tokens without padding.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers; its weights are not read.
        labels: Names of the classes; None for regression.

    Raises:
        RequestError: where the method does not fit.
    """
    import torch

    from petl_bench.measure.ledger import count_step
    from petl_bench.measure.twin import posed_as_cpu
    from petl_bench.training.optimizer import build_optimizer

    train, length = cfg.train, cfg.task.max_length
    rows = math.ceil(train.batch_size / train.accumulation)
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, params = build_adapted(cfg, backbone, labels, _SOME_STEPS, device="meta")
        with posed_as_cpu(model):
            params.stored_bytes = _stored_bytes(model)
            model.train()
            inputs = {
                "input_ids": torch.zeros(rows, length, dtype=torch.int64),
                "labels": torch.zeros(rows, dtype=torch.int64 if labels else torch.float32),
            }
            count = count_step(
                model,
                build_optimizer(model, train, backbone.anatomy.in_head),
                inputs,
                autocast=autocast,
                passes=min(train.accumulation, 2),
                max_grad_norm=train.max_grad_norm,
            )
            inputs = {"input_ids": torch.zeros(train.batch_size, length, dtype=torch.int64)}
            inference, is_merged = _inference_flops(model, inputs, autocast)
    flops = Flops(count.flops * train.batch_size // rows, inference, is_merged)
    return Costs(params, _ledger(count, cfg), flops, count.course)


def _ledger(count: StepCount, cfg: RunConfig) -> Ledger:
    return Ledger(
        batch_size=cfg.train.batch_size,
        sequence_length=cfg.task.max_length,
        weights_bytes=count.weights,
        gradients_bytes=count.gradients,
        optimizer_bytes=count.optimizer,
        activations_bytes=count.activations,
        temporaries_bytes=count.at_peak["temporaries"],
        peak_bytes=count.peak,
        accumulation=cfg.train.accumulation,
        peak_phase=count.peak_phase,
        at_peak=LedgerAtPeak(**{f"{kind}_bytes": size for kind, size in count.at_peak.items()}),
        device="cpu",
        attention_kernel=count.kernel,
    )


def _inference_flops(model: nn.Module, inputs: dict[str, Any], autocast: Any) -> tuple[int, bool]:
    """Operations of one forward pass, and whether the adapter could be merged for it."""
    import torch

    from petl_bench.measure.flops import count_flops

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            model(**inputs)

    model.eval()
    model, is_merged = merged(model)
    return count_flops(forward), is_merged


def _stored_bytes(model: nn.Module) -> int:
    from peft import PeftModel, get_peft_model_state_dict

    from petl_bench.measure.stored import safetensors_bytes

    if isinstance(model, PeftModel):
        return safetensors_bytes(get_peft_model_state_dict(model, save_embedding_layers=False))
    return safetensors_bytes(model.state_dict())


def largest_batch(cfg: RunConfig, backbone: Backbone, labels: list[str] | None, costs: Costs, budget: int) -> int:
    """The largest `train.batch_size` whose update peaks within `budget` bytes; 0 where not even one row does.

    Every storage's size is an affine function of the number of rows, so two counts of the same events give the
    memory at each moment for any number of them.
    """
    accumulation = cfg.train.accumulation
    rows = math.ceil(cfg.train.batch_size / accumulation)
    twice = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, batch_size=2 * rows * accumulation))
    larger = count_costs(twice, backbone, labels).course
    fits = math.inf
    for small, large in zip(costs.course, larger, strict=True):
        slope = (large - small) / rows
        fixed = small - slope * rows
        if fixed > budget:
            return 0
        if slope > 0:
            fits = min(fits, (budget - fixed) // slope)
    return int(fits) * accumulation
