"""Estimates what a run will cost: parameters, memory and operations of one update, and the largest batch that fits.

The run's model is built on the meta device and converted to fake tensors, so an estimate needs neither weights nor
rows, and no memory for the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from petl_bench.backbones.anatomy import LayerPlan, LayersConfig
from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.estimate.memory import UpdateMemory, measure_update
from petl_bench.estimate.tensor_modes import as_fake, count_flops
from petl_bench.methods.peft import merged
from petl_bench.model import build_adapted
from petl_bench.records.schema import Flops, MemoryAtPeak, MemoryEstimate, Params
from petl_bench.training.device import resolved_device
from petl_bench.training.loop import build_optimizer

# AdaLoRA's schedule needs the number of updates. The cost of one does not depend on it.
_NUM_TRAINING_STEPS = 1000


@dataclass(frozen=True)
class Costs:
    """The costs of one update, and of one forward pass at inference.

    Attributes:
        params: Numbers of parameters, and the size of the weights file.
        estimate: Memory of one update by kind.
        flops: Floating-point operations.
        timeline: Bytes allocated after each event of the update.
    """

    params: Params
    estimate: MemoryEstimate
    flops: Flops
    timeline: tuple[int, ...]


def estimate_costs(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> Costs:
    """Estimates the costs of one update of a run.

    The batch has `train.batch_size` rows of `task.max_length` tokens without padding.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers; its weights are not read.
        labels: Names of the classes or tags; None for regression.

    Returns:
        The costs.

    Raises:
        RequestError: If the method does not support the backbone or the settings.
    """
    sizes = pass_sizes(cfg.train.batch_size, cfg.train.accumulation)
    # Gradients already exist from the second pass on. Of the passes after it, only one of another size adds anything.
    measured = sizes[:2] + [size for size in sizes[2:] if size != sizes[1]][:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta_model = _MetaModel(cfg, backbone, labels)
        stored_bytes = meta_model.stored_bytes()
        update = meta_model.measure(measured)
        inference_flops, is_merged = meta_model.inference_flops(cfg.train.batch_size)
    flops_of_size = dict(zip(measured, update.flops, strict=True))
    estimate = MemoryEstimate(
        batch_size=cfg.train.batch_size,
        sequence_length=cfg.task.max_length,
        weights_bytes=update.weights,
        gradients_bytes=update.gradients,
        optimizer_bytes=update.optimizer,
        activations_bytes=update.activations,
        temporaries_bytes=update.at_peak["temporaries"],
        peak_bytes=update.peak,
        accumulation=cfg.train.accumulation,
        peak_phase=update.peak_phase,
        at_peak=MemoryAtPeak(**{f"{kind}_bytes": size for kind, size in update.at_peak.items()}),
        device=resolved_device(cfg.train),
        attention_kernel=update.kernel,
    )
    return Costs(
        params=dataclasses.replace(meta_model.params, stored_bytes=stored_bytes),
        estimate=estimate,
        flops=Flops(sum(flops_of_size[size] for size in sizes), inference_flops, is_merged),
        timeline=update.timeline,
    )


def cost_key(cfg: RunConfig, layers: LayerPlan | LayersConfig, labels: list[str] | None) -> str:
    """A key that is equal for runs with equal costs, such as those of a sweep over seeds.

    Args:
        cfg: The run.
        layers: Its layers. Only keys from arguments of the same type are comparable.
        labels: Names of the classes or tags; None for regression.

    Returns:
        All settings that costs depend on, as JSON.
    """
    method = {name: value for name, value in asdict(cfg.method).items() if not name.startswith("default_")}
    names = ("batch_size", "accumulation", "precision", "gradient_checkpointing", "last_layer")
    train = [*(getattr(cfg.train, name) for name in names), resolved_device(cfg.train)]
    shape: list[int | str] = [len(labels) if labels else 0, cfg.task.max_length]
    if cfg.task.type in ("tagging", "multilabel"):
        # Their heads or losses differ from those for one label per row.
        shape.append(cfg.task.type)
    return json.dumps([asdict(cfg.backbone), asdict(layers), method, train, shape], sort_keys=True, default=str)


_estimated: dict[str, Costs] = {}


def estimate_costs_once(cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> Costs:
    """Like `estimate_costs`, but runs of one process that differ only in seed or learning rate share one estimate."""
    key = cost_key(cfg, backbone.plan, labels)
    if key not in _estimated:
        _estimated[key] = estimate_costs(cfg, backbone, labels)
    return _estimated[key]


def pass_sizes(rows: int, accumulation: int) -> list[int]:
    """Numbers of rows of the passes of an update, the largest first, as the training loop splits a batch."""
    passes = min(rows, accumulation)
    return [rows // passes + (number < rows % passes) for number in range(passes)]


def largest_batch(cfg: RunConfig, backbone: Backbone, labels: list[str] | None, costs: Costs, budget: int) -> int:
    """Finds the largest batch size whose update stays within a memory budget.

    The size of every storage is an affine function of the number of rows. Two timelines of the same events therefore
    give the memory at each moment for any number of rows, and no search is needed.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers; its weights are not read.
        labels: Names of the classes or tags; None for regression.
        costs: The run's costs from `estimate_costs`.
        budget: The largest peak that is allowed, in bytes.

    Returns:
        A multiple of `train.accumulation`; 0 if not even passes of one row fit.
    """
    accumulation = cfg.train.accumulation
    sizes = pass_sizes(cfg.train.batch_size, accumulation)
    meta_model = _MetaModel(cfg, backbone, labels)
    passes = min(accumulation, 2)
    # With a single row, kernels run other operators than with several.
    rows = max(2, sizes[0])
    small = costs.timeline if sizes[-1] == rows and len(sizes) <= 2 else meta_model.measure([rows] * passes).timeline
    large = meta_model.measure([2 * rows] * passes).timeline
    if len(small) == len(large):
        fitting = _extrapolate(small, large, rows, budget)
    else:
        fitting = _search(lambda rows: meta_model.measure([rows] * passes).peak <= budget)
    if fitting < 2:
        fitting = int(meta_model.measure([1] * passes).peak <= budget)
    return fitting * accumulation


def _extrapolate(small: Sequence[int], large: Sequence[int], rows: int, budget: int) -> int:
    """Calculates the largest number of rows that keeps every moment of an update within the budget.

    Args:
        small: Timeline of an update with `rows` rows a pass, in bytes.
        large: Timeline of the same events with twice as many rows.
        rows: Number of rows of a pass.
        budget: Bytes.

    Returns:
        The number of rows; 0 if the part that does not depend on it exceeds the budget.
    """
    fitting = math.inf
    for less, more in zip(small, large, strict=True):
        fixed, slope = 2 * less - more, (more - less) / rows
        if fixed > budget:
            return 0
        if slope > 0:
            fitting = min(fitting, (budget - fixed) // slope)
    return int(fitting)


def _search(fits: Callable[[int], bool]) -> int:
    """Finds the largest number that fits by doubling, then bisection; 0 if 1 does not fit."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class _MetaModel:
    """A run's model without memory: built on the meta device, then converted to fake tensors.

    Args:
        cfg: The run.
        backbone: Opened with the run's layers.
        labels: Names of the classes or tags; None for regression.

    Attributes:
        params: Numbers of parameters.
    """

    def __init__(self, cfg: RunConfig, backbone: Backbone, labels: list[str] | None) -> None:
        self._cfg, self._backbone, self._labels = cfg, backbone, labels
        try:
            self._model, self.params = build_adapted(cfg, backbone, labels, _NUM_TRAINING_STEPS, device="meta")
        except (NotImplementedError, RuntimeError):
            # Some PEFT types read the values of the weights, which a meta model does not have. Random ones suffice.
            random = dataclasses.replace(backbone, source=None)
            self._model, self.params = build_adapted(cfg, random, labels, _NUM_TRAINING_STEPS)
        self._mode = as_fake(self._model, resolved_device(cfg.train))
        self._autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.train.precision)

    def measure(self, sizes: Sequence[int]) -> UpdateMemory:
        """Measures an update whose passes have these numbers of rows."""
        with self._mode:
            self._model.train()
            batches = [
                {
                    "input_ids": torch.zeros(rows, self._cfg.task.max_length, dtype=torch.int64),
                    "labels": self._label_batch(rows),
                }
                for rows in sizes
            ]
            optimizer = build_optimizer(self._model, self._cfg.train, self._backbone.anatomy.in_head)
            return measure_update(
                self._model,
                optimizer,
                batches,
                autocast=self._autocast,
                max_grad_norm=self._cfg.train.max_grad_norm,
            )

    def _label_batch(self, rows: int) -> torch.Tensor:
        """Labels of the shape and type that the task's loss takes."""
        task, num_labels = self._cfg.task, len(self._labels or ())
        if task.type == "tagging":
            return torch.zeros(rows, task.max_length, dtype=torch.int64)
        if task.type == "multilabel":
            return torch.zeros(rows, num_labels, dtype=torch.float32)
        return torch.zeros(rows, dtype=torch.int64 if num_labels else torch.float32)

    def inference_flops(self, rows: int) -> tuple[int, bool]:
        """Counts the operations of one forward pass at inference.

        The adapter is merged if the method can do so. The model cannot be trained afterwards.

        Returns:
            The number of operations, and whether the adapter was merged.
        """
        with self._mode:
            self._model.eval()
            model, is_merged = merged(self._model)
            ids = torch.zeros(rows, self._cfg.task.max_length, dtype=torch.int64)

            def forward() -> None:
                with torch.no_grad(), torch.autocast("cpu", dtype=self._autocast, enabled=self._autocast is not None):
                    model(input_ids=ids)

            return count_flops(forward), is_merged

    def stored_bytes(self) -> int:
        """The size of the weights file that the run saves, in bytes."""
        from peft import PeftModel, get_peft_model_state_dict

        with self._mode:
            if isinstance(self._model, PeftModel):
                return safetensors_bytes(get_peft_model_state_dict(self._model, save_embedding_layers=False))
            return safetensors_bytes(self._model.state_dict())


# Names of dtypes in the header of a safetensors file.
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
    """Calculates the size of the safetensors file that transformers or PEFT would write.

    Args:
        tensors: The content of the file by name. Tensors that share a storage are each written in full.

    Returns:
        The size in bytes, including that of the header.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return _ALIGNMENT + -(-text // _ALIGNMENT) * _ALIGNMENT + end
