"""Estimates the costs of methods before anything is trained, one row for each method: `petl-bench plan`."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from petl_bench.backbones.anatomy import LayersConfig, check_variability, layer_window
from petl_bench.backbones.load import open_backbone
from petl_bench.config import RunConfig, load_config, resolved
from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.estimate.costs import estimate_costs, largest_batch
from petl_bench.methods.registry import all_methods, get_method
from petl_bench.records.run_key import backbone_name, method_label
from petl_bench.records.schema import Flops, Layers, MemoryEstimate, Params
from petl_bench.tasks.load import trained_labels

ALL = "all"

# Options of the progress bar, which a terminal shows for counts that take longer than `delay` seconds.
_PROGRESS: dict[str, Any] = {"desc": "counting costs", "leave": False, "delay": 1, "disable": None}

_METHOD_OVERRIDE = re.compile(r"\+{0,2}method=")

_LAYERS_DEPEND_ON_ROWS = "the task's rows choose the layers; counted with the most expensive of the extreme choices"


@dataclass(frozen=True)
class PlanRow:
    """The costs of one method, in the fields of a record.

    Attributes:
        method: The method's name.
        label: The name in tables; for `method=peft`, it includes the type.
        backbone: The backbone's name.
        task: The task's name.
        precision: `train.precision`.
        weights_dtype: `backbone.dtype`, of the weights that are not trained.
        layers: The layers that are trained; None, like all costs, if `note` says why the method cannot be run.
        params: Numbers of parameters.
        estimate: Memory of one update by kind.
        flops: Floating-point operations.
        peak_reduction: Peak memory of full fine-tuning divided by that of this row.
        fits: Whether the peak stays within the budget; None without a budget.
        largest_batch_size: The largest `train.batch_size` that stays within it, 0 if none does; None without a budget.
        note: What a reader must know about this row.
    """

    method: str
    label: str
    backbone: str
    task: str
    precision: str
    weights_dtype: str
    layers: Layers | None = None
    params: Params | None = None
    estimate: MemoryEstimate | None = None
    flops: Flops | None = None
    peak_reduction: float | None = None
    fits: bool | None = None
    largest_batch_size: int | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row with the keys of a record; what depends on a budget is left out if there is none."""
        row = asdict(self)
        row["memory"] = {"estimate": row.pop("estimate")}
        if self.fits is None:
            del row["fits"], row["largest_batch_size"]
        return row


def plan(overrides: list[str], budget: int | None = None) -> list[PlanRow]:
    """Estimates the costs of each requested method.

    Args:
        overrides: As for a run, except that `method=` may be `all`, which is the default, or a comma-separated list.
        budget: The largest peak memory that is allowed, in bytes; None for no limit.

    Returns:
        One row for each method, in the order of the request.

    Raises:
        RequestError: If none of the methods can be run as requested.
        RunError: If the costs of none of them can be estimated.
    """
    configs: dict[str, RunConfig | RequestError] = {}
    for method, method_overrides in split_methods(overrides).items():
        try:
            configs[method] = resolved(load_config(method_overrides))
        except RequestError as error:
            configs[method] = error
    valid = [cfg for cfg in configs.values() if isinstance(cfg, RunConfig)]
    if not valid:
        raise next(error for error in configs.values() if isinstance(error, RequestError))
    # The others are compared with full fine-tuning, which is estimated even if it was not requested.
    requested = [cfg for cfg in valid if (cfg.method.name, cfg.layers.name) == ("full", "all")]
    whole = replace(valid[0], method=get_method("full").config(name="full"), layers=LayersConfig())
    added = [] if requested else [whole]
    estimated = estimate_all([*((cfg, budget) for cfg in valid), *((cfg, None) for cfg in added)])
    full = estimated[-1] if added else estimated[valid.index(requested[0])]
    full_peak = full.estimate.peak_bytes if isinstance(full, PlanRow) and full.estimate else None

    remaining = iter(estimated)
    outcomes = {method: next(remaining) if isinstance(cfg, RunConfig) else cfg for method, cfg in configs.items()}
    failures = [outcome for outcome in outcomes.values() if not isinstance(outcome, PlanRow)]
    if len(failures) == len(outcomes):
        raise failures[0]
    return [_complete(method, outcome, valid[0], full_peak) for method, outcome in outcomes.items()]


def split_methods(overrides: list[str]) -> dict[str, list[str]]:
    """Splits the overrides of a plan into those of one run for each method.

    Args:
        overrides: As for `plan`. A recipe without `method=` brings its own method.

    Returns:
        The overrides by method, each method once.

    Raises:
        RequestError: If no method is named, or if another setting has several values.
    """
    named = [override.partition("=")[2] for override in overrides if _METHOD_OVERRIDE.match(override)]
    others = [override for override in overrides if not _METHOD_OVERRIDE.match(override)]
    for override in others:
        key, _, value = override.partition("=")
        if "," in value and value[:1] not in "[{'\"":
            raise RequestError(f"{key}={value}: plan takes several values for method= only; call it once for each.")
    if not named and any(override.startswith("recipe=") for override in others):
        return {"recipe": others}
    names = [name.strip() for name in (named[-1] if named else ALL).split(",") if name.strip()]
    if not names or "null" in names:
        raise RequestError("method= names no method: `petl-bench list methods` shows them, method=all takes them all.")
    methods = all_methods() if ALL in names else names
    return {method: [*others, f"method={method}"] for method in methods}


def _complete(method: str, row: PlanRow | RequestError | RunError, cfg: RunConfig, full_peak: int | None) -> PlanRow:
    """Adds the comparison with full fine-tuning to a row, or makes a row without costs from an error.

    Args:
        method: The method as requested.
        row: Its row, or the reason why there is none.
        cfg: A valid run of the same plan, for the settings that all rows share.
        full_peak: Peak memory of full fine-tuning in bytes; None if it could not be estimated.

    Returns:
        The row.
    """
    if not isinstance(row, PlanRow):
        backbone = backbone_name(cfg.to_dict()["backbone"])
        return PlanRow(method, method, backbone, cfg.task.name, cfg.train.precision, cfg.backbone.dtype, note=str(row))
    assert row.estimate
    return replace(row, peak_reduction=None if full_peak is None else full_peak / row.estimate.peak_bytes)


def estimate_all(jobs: list[tuple[RunConfig, int | None]]) -> list[PlanRow | RequestError | RunError]:
    """Estimates several runs, in parallel processes where forking is possible.

    Args:
        jobs: Each run with its budget in bytes, or None.

    Returns:
        A row for each job, or the error that prevented it.
    """
    # Imported before the processes are forked, so that they share the modules.
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from tqdm import tqdm

    if sys.platform != "linux" or torch.cuda.is_initialized():
        return [_estimate(*job) for job in tqdm(jobs, **_PROGRESS)]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = pool.map(_estimate, *zip(*jobs, strict=True))
        return list(tqdm(rows, total=len(jobs), **_PROGRESS))


def _estimate(cfg: RunConfig, budget: int | None) -> PlanRow | RequestError | RunError:
    try:
        return _plan_row(cfg, budget)
    except (RequestError, RunError) as error:
        return error
    except Exception as error:  # a method of a plugin may need the values that fake tensors do not have
        what = f"method={cfg.method.name} with backbone={cfg.backbone.name}"
        return RunError(f"{what} cannot be counted: {type(error).__name__}: {first_line(error)}")


def _plan_row(cfg: RunConfig, budget: int | None) -> PlanRow:
    num_layers = open_backbone(cfg.backbone, LayersConfig(), weights=False).plan.num_layers
    labels = trained_labels(cfg.task)
    candidates = []
    for layers in extreme_plans(cfg.layers, num_layers):
        candidate = replace(cfg, layers=layers)
        backbone = open_backbone(candidate.backbone, candidate.layers, weights=False, task_type=cfg.task.type)
        backbone.check_length(candidate.task.max_length)
        candidates.append((estimate_costs(candidate, backbone, labels), candidate, backbone))
    costs, cfg, backbone = max(candidates, key=lambda candidate: candidate[0].estimate.peak_bytes)
    layer_plan = backbone.plan
    row = PlanRow(
        method=cfg.method.name,
        label=method_label(cfg.to_dict()["method"]),
        backbone=backbone_name(cfg.to_dict()["backbone"]),
        task=cfg.task.name,
        precision=cfg.train.precision,
        weights_dtype=cfg.backbone.dtype,
        layers=Layers(layer_plan.bottom, layer_plan.top, layer_plan.head, num_layers),
        params=costs.params,
        estimate=costs.estimate,
        flops=costs.flops,
        note=_LAYERS_DEPEND_ON_ROWS if len(candidates) > 1 else None,
    )
    if budget is None:
        return row
    largest = largest_batch(cfg, backbone, labels, costs, budget)
    return replace(row, fits=costs.estimate.peak_bytes <= budget, largest_batch_size=largest)


def extreme_plans(layers: LayersConfig, num_layers: int) -> list[LayersConfig]:
    """The plans that `layers` gives if the lowest or the highest layer is chosen, or the lowest at full width.

    A plan that does not depend on rows is returned as it is.

    Raises:
        RequestError: If a setting is out of range.
    """
    if layers.name != "variability":
        return [layers]
    check_variability(layers)
    widest = min(layers.k or num_layers, num_layers)
    choices = {1, widest, num_layers} if layers.strategy == "window_top_head" else {1, num_layers}
    return [layer_window(layers, best, num_layers) for best in sorted(choices)]
