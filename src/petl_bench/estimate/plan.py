"""What methods will cost, a row each, before anything is trained: `petl-bench plan`."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from petl_bench.backbones.layers import LayersConfig, extreme_plans
from petl_bench.backbones.load import open_backbone
from petl_bench.config import RunConfig, load_config, resolved
from petl_bench.errors import RequestError, RunError
from petl_bench.estimate.costs import count_costs, largest_batch
from petl_bench.methods.registry import all_methods, get_method
from petl_bench.records.run_key import backbone_name, method_label
from petl_bench.records.schema import Flops, Layers, MemoryEstimate, Params
from petl_bench.tasks.load import find_labels

ALL = "all"

_METHOD = re.compile(r"\+{0,2}method=")

_CHOSEN_BY_ROWS = "the task's rows choose the layers; counted with the costliest of the extreme choices"


@dataclass(frozen=True)
class PlanRow:
    """One method's costs in the record's own fields; all None where `note` says why it cannot be run.

    Attributes:
        label: The method's name; of PEFT's shelf, the type with it.
        peak_reduction: Peak memory of full fine-tuning over this row's.
        fits: Whether the peak keeps within the budget.
        largest_batch_size: The largest `train.batch_size` that does; 0 where none does.
        note: What must be known of this row.
    """

    method: str
    label: str
    backbone: str
    task: str
    precision: str
    layers: Layers | None = None
    params: Params | None = None
    estimate: MemoryEstimate | None = None
    flops: Flops | None = None
    peak_reduction: float | None = None
    fits: bool | None = None
    largest_batch_size: int | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as the record has it: `estimate` within `memory`; what a budget tells only where there is one."""
        row = asdict(self)
        row["memory"] = {"estimate": row.pop("estimate")}
        if self.fits is None:
            del row["fits"], row["largest_batch_size"]
        return row


def plan(overrides: list[str], budget: int | None = None) -> list[PlanRow]:
    """Counts what each method asked for takes.

    Args:
        overrides: As for a run; `method=` may be `all` (so it is where none is given) or several, comma-separated.
        budget: Bytes that the peak must keep within.

    Raises:
        RequestError: where nothing that was asked for can be run.
        RunError: where nothing of it can be counted.
    """
    requests = split_methods(overrides)
    configs = {method: _compose(words) for method, words in requests.items()}
    composed = [cfg for cfg in configs.values() if isinstance(cfg, RunConfig)]
    if not composed:
        raise next(error for error in configs.values() if isinstance(error, RequestError))
    # Full fine-tuning is what the others are compared with.
    asked_for = [cfg for cfg in composed if (cfg.method.name, cfg.layers.name) == ("full", "all")]
    further = [] if asked_for else [_full_fine_tuning(composed[0])]
    counted = count_all([*((cfg, budget) for cfg in composed), *((cfg, None) for cfg in further)])
    full = counted[-1] if further else counted[composed.index(asked_for[0])]
    peak = full.estimate.peak_bytes if isinstance(full, PlanRow) and full.estimate else None
    rows = iter(counted)
    found = {method: next(rows) if isinstance(cfg, RunConfig) else cfg for method, cfg in configs.items()}
    failures = [row for row in found.values() if not isinstance(row, PlanRow)]
    if len(failures) == len(found):
        raise failures[0]
    return [_finish(method, row, composed[0], peak) for method, row in found.items()]


def split_methods(overrides: list[str]) -> dict[str, list[str]]:
    """The overrides of each method that they name, each method once; a recipe brings its own.

    Raises:
        RequestError: where another setting has several values.
    """
    named = [word.partition("=")[2] for word in overrides if _METHOD.match(word)]
    others = [word for word in overrides if not _METHOD.match(word)]
    for word in others:
        key, _, value = word.partition("=")
        if "," in value and value[:1] not in "[{'\"":
            raise RequestError(f"{key}={value}: plan takes several values for method= only; call it once for each.")
    if not named and any(word.startswith("recipe=") for word in others):
        return {"recipe": others}
    wanted = [name.strip() for name in (named[-1] if named else ALL).split(",") if name.strip()]
    if not wanted or "null" in wanted:
        raise RequestError("method= names no method: `petl-bench list methods` shows them, method=all takes them all.")
    methods = all_methods() if ALL in wanted else wanted
    return {method: [*others, f"method={method}"] for method in methods}


def _compose(overrides: list[str]) -> RunConfig | RequestError:
    try:
        return resolved(load_config(overrides))
    except RequestError as error:
        return error


def _full_fine_tuning(cfg: RunConfig) -> RunConfig:
    """The same run with the whole model trained."""
    return replace(cfg, method=get_method("full").config(name="full"), layers=LayersConfig())


def _finish(method: str, row: PlanRow | RequestError | RunError, cfg: RunConfig, full_peak: int | None) -> PlanRow:
    if not isinstance(row, PlanRow):
        backbone = backbone_name(cfg.to_dict()["backbone"])
        return PlanRow(method, method, backbone, cfg.task.name, cfg.train.precision, note=str(row))
    assert row.estimate
    return replace(row, peak_reduction=None if full_peak is None else full_peak / row.estimate.peak_bytes)


def count_all(jobs: list[tuple[RunConfig, int | None]]) -> list[PlanRow | RequestError | RunError]:
    """Every job's row, or what is wrong with it; counted side by side where processes are cheap to start."""
    import peft  # noqa: F401 (once, before the processes are forked)
    import torch
    import transformers  # noqa: F401

    if sys.platform != "linux" or torch.cuda.is_initialized():
        return [_count_one(*job) for job in jobs]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(_count_one, *zip(*jobs, strict=True)))


def _count_one(cfg: RunConfig, budget: int | None) -> PlanRow | RequestError | RunError:
    try:
        return _count(cfg, budget)
    except (RequestError, RunError) as error:
        return error
    except Exception as error:  # a method from elsewhere may do what tensors without content cannot
        words = (str(error).strip().splitlines() or [""])[0]
        what = f"method={cfg.method.name} with backbone={cfg.backbone.name}"
        return RunError(f"{what} cannot be counted: {type(error).__name__}: {words}")


def _count(cfg: RunConfig, budget: int | None) -> PlanRow:
    num_layers = open_backbone(cfg.backbone, LayersConfig(), weights=False).plan.num_layers
    labels = find_labels(cfg.task)
    counted = []
    for layers in extreme_plans(cfg.layers, num_layers):
        candidate = replace(cfg, layers=layers)
        backbone = open_backbone(candidate.backbone, candidate.layers, weights=False)
        backbone.check_length(candidate.task.max_length)
        counted.append((count_costs(candidate, backbone, labels), candidate, backbone))
    costs, cfg, backbone = max(counted, key=lambda found: found[0].estimate.peak_bytes)
    chosen = backbone.plan
    row = PlanRow(
        method=cfg.method.name,
        label=method_label(cfg.to_dict()["method"]),
        backbone=backbone_name(cfg.to_dict()["backbone"]),
        task=cfg.task.name,
        precision=cfg.train.precision,
        layers=Layers(chosen.bottom, chosen.top, chosen.head, num_layers),
        params=costs.params,
        estimate=costs.estimate,
        flops=costs.flops,
        note=_CHOSEN_BY_ROWS if len(counted) > 1 else None,
    )
    if budget is None:
        return row
    largest = largest_batch(cfg, backbone, labels, costs, budget)
    return replace(row, fits=costs.estimate.peak_bytes <= budget, largest_batch_size=largest)
