"""What a run will cost: parameters, memory and operations of one update, without weights, rows or a device."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from petl_bench.backbones.layers import LayerPlan, LayersConfig
from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.methods.hooks import merged
from petl_bench.model import build_adapted
from petl_bench.records.schema import Flops, MemoryAtPeak, MemoryEstimate, Params

if TYPE_CHECKING:
    from petl_bench.estimate.memory import StepCount


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_ALIGNMENT = 8


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Size of the safetensors file that transformers and PEFT would write, its header included.

    Args:
        tensors: What is written, by name; each is written whole, whatever storage it shares.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return _ALIGNMENT + -(-text // _ALIGNMENT) * _ALIGNMENT + end


# AdaLoRA wants to know; the first update costs the same whatever it is.
_SOME_STEPS = 1000


@dataclass(frozen=True)
class Costs:
    """What one update takes, and one pass at inference.

    Attributes:
        params: Trained and other parameters.
        ledger: Memory by kind.
        flops: Operations.
        course: Bytes held after each event of the update.
    """

    params: Params
    estimate: MemoryEstimate
    flops: Flops
    timeline: tuple[int, ...]


def count_costs(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> Costs:
    """Counts one update of a run on a twin of its model that has no memory.

    The batch is `train.batch_size` rows of `task.max_length` tokens without padding.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers; its weights are not read.
        labels: Names of the classes; None for regression.

    Raises:
        RequestError: where the method does not fit.
    """
    sizes = pass_sizes(cfg.train.batch_size, cfg.train.accumulation)
    # The second pass meets gradients; of those after it only the smaller ones are new.
    counted = sizes[:2] + [size for size in sizes[2:] if size != sizes[1]][:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta_model = _MetaModel(cfg, backbone, labels)
        stored_bytes = meta_model.stored_bytes()
        count = meta_model.count(counted)
        inference, is_merged = meta_model.inference_flops(cfg.train.batch_size)
    params = dataclasses.replace(meta_model.params, stored_bytes=stored_bytes)
    flops_of = dict(zip(counted, count.flops, strict=True))
    flops = Flops(sum(flops_of[size] for size in sizes), inference, is_merged)
    return Costs(params, _memory_estimate(count, cfg), flops, count.timeline)


def cost_key(cfg: RunConfig, layers: LayerPlan | LayersConfig, labels: list[str] | None) -> str:
    """Equal for runs whose costs are, where their layers are told apart in the same way."""
    method = {name: value for name, value in asdict(cfg.method).items() if not name.startswith("default_")}
    names = ("batch_size", "accumulation", "precision", "gradient_checkpointing", "last_layer")
    train = [getattr(cfg.train, name) for name in names]
    shape = [len(labels) if labels else 0, cfg.task.max_length]
    return json.dumps([asdict(cfg.backbone), asdict(layers), method, train, shape], sort_keys=True, default=str)


_counted: dict[str, Costs] = {}


def count_costs_once(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> Costs:
    """Like `count_costs`, but counts runs of a process that differ in a seed or a learning rate only once."""
    key = cost_key(cfg, backbone.plan, labels)
    if key not in _counted:
        _counted[key] = count_costs(cfg, backbone, labels)
    return _counted[key]


def pass_sizes(rows: int, accumulation: int) -> list[int]:
    """Rows of each pass of an update, as the loop splits them; largest first."""
    passes = min(rows, accumulation)
    return [rows // passes + (number < rows % passes) for number in range(passes)]


class _MetaModel:
    """A run's model without memory. Every method uses it within the mode that makes it look like one on the CPU."""

    def __init__(self, cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> None:
        import torch

        from petl_bench.estimate.memory import as_fake_cpu

        self.cfg, self.backbone, self.labels = cfg, backbone, labels
        try:
            self.model, self.params = build_adapted(cfg, backbone, labels, _SOME_STEPS, device="meta")
        except (NotImplementedError, RuntimeError):
            # The method looks at the weights' content: random ones serve.
            random = dataclasses.replace(backbone, source=None)
            self.model, self.params = build_adapted(cfg, random, labels, _SOME_STEPS)
        self.mode = as_fake_cpu(self.model)
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.train.precision)

    def count(self, sizes: Sequence[int]) -> StepCount:
        """Counts an update whose passes have these numbers of rows."""
        import torch

        from petl_bench.estimate.memory import count_step
        from petl_bench.training.optimizer import build_optimizer

        length, dtype = self.cfg.task.max_length, torch.int64 if self.labels else torch.float32
        with self.mode:
            self.model.train()
            batches = [
                {
                    "input_ids": torch.zeros(rows, length, dtype=torch.int64),
                    "labels": torch.zeros(rows, dtype=dtype),
                }
                for rows in sizes
            ]
            optimizer = build_optimizer(self.model, self.cfg.train, self.backbone.anatomy.in_head)
            return count_step(
                self.model,
                optimizer,
                batches,
                autocast=self.autocast,
                max_grad_norm=self.cfg.train.max_grad_norm,
            )

    def inference_flops(self, rows: int) -> tuple[int, bool]:
        """Operations of one forward pass, and whether the adapter could be merged for it; the twin is used up."""
        import torch

        from petl_bench.estimate.flops import count_flops

        with self.mode:
            self.model.eval()
            model, is_merged = merged(self.model)
            ids = torch.zeros(rows, self.cfg.task.max_length, dtype=torch.int64)

            def forward() -> None:
                with torch.no_grad(), torch.autocast("cpu", dtype=self.autocast, enabled=self.autocast is not None):
                    model(input_ids=ids)

            return count_flops(forward), is_merged

    def stored_bytes(self) -> int:
        """Size of the weights file that a run keeps."""
        from peft import PeftModel, get_peft_model_state_dict

        with self.mode:
            if isinstance(self.model, PeftModel):
                return safetensors_bytes(get_peft_model_state_dict(self.model, save_embedding_layers=False))
            return safetensors_bytes(self.model.state_dict())


def _memory_estimate(count: StepCount, cfg: RunConfig) -> MemoryEstimate:
    return MemoryEstimate(
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
        at_peak=MemoryAtPeak(**{f"{kind}_bytes": size for kind, size in count.at_peak.items()}),
        device="cpu",
        attention_kernel=count.kernel,
    )


def largest_batch(cfg: RunConfig, backbone: Backbone, labels: list[str] | None, costs: Costs, budget: int) -> int:
    """The largest `train.batch_size` whose update peaks within `budget` bytes; 0 where not even one row a pass does.

    It is a multiple of `train.accumulation`. Every storage's size is an affine function of the number of rows, so two
    counts of the same events give the memory at each moment for any number of them.
    """
    accumulation = cfg.train.accumulation
    sizes = pass_sizes(cfg.train.batch_size, accumulation)
    meta_model = _MetaModel(cfg, backbone, labels)
    passes = min(accumulation, 2)
    # One row alone takes other paths through the kernels than several do.
    rows = max(2, sizes[0])
    small = costs.timeline if sizes[-1] == rows and len(sizes) <= 2 else meta_model.count([rows] * passes).timeline
    large = meta_model.count([2 * rows] * passes).timeline
    if len(small) == len(large):
        fitting = _extrapolated(small, large, rows, budget)
    else:
        fitting = _searched(lambda rows: meta_model.count([rows] * passes).peak <= budget)
    if fitting < 2:
        fitting = int(meta_model.count([1] * passes).peak <= budget)
    return fitting * accumulation


def _extrapolated(small: Sequence[int], large: Sequence[int], rows: int, budget: int) -> int:
    """The most rows that keep every moment within the budget, from two courses of the same events."""
    fitting = math.inf
    for less, more in zip(small, large, strict=True):
        fixed, slope = 2 * less - more, (more - less) / rows
        if fixed > budget:
            return 0
        if slope > 0:
            fitting = min(fitting, (budget - fixed) // slope)
    return int(fitting)


def _searched(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and halving."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
