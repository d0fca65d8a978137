"""Claims on what a method takes: its size, and ratios of costs."""

from __future__ import annotations

import statistics
from typing import Any

from petl_bench.reports.papers.outcome import Outcome, not_run
from petl_bench.reports.statistics.study_records import StudyRecords
from petl_bench.reports.statistics.summary import Statistic

# Where the record has a quantity, and the planned costs where they know it.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "ledger_peak": ("memory", "ledger", "peak_bytes"),
    "device_peak": ("memory", "device", "train_peak_allocated_bytes"),
    "inference_throughput": ("inference", "examples_per_second"),
    "train_throughput": ("time", "train_examples_per_second"),
    "trainable": ("params", "trainable"),
    "train_step_flops": ("flops", "train_step_flops"),
    "inference_flops": ("flops", "inference_flops"),
    "best_epoch": ("scores", "best_epoch"),
}


def share_at_most(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """The largest share of the backbone (head included) over the tasks."""
    shares = [
        share for task in test["tasks"] if (share := _planned_or_run(test["method"], task, ours, "share")) is not None
    ]
    if not shares:
        return not_run([(test["method"], task) for task in test["tasks"]], ours)
    share = max(shares)
    # As many digits as the claim has: 0.534 % is 0.53 %.
    digits = len(str(test["percent"]).partition(".")[2])
    words = f"{test['method']} trains {share:.3f} % of the backbone, head included; claimed: {test['percent']:g} %"
    return Outcome(round(share, digits) <= test["percent"], words)


def params_at_most(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """The method's own parameters, the head's not counted."""
    counts = [
        count for task in test["tasks"] if (count := _planned_or_run(test["method"], task, ours, "params")) is not None
    ]
    if not counts:
        return not_run([(test["method"], task) for task in test["tasks"]], ours)
    count = max(counts)
    digits = len(str(test["millions"]).partition(".")[2])
    words = f"{test['method']} trains {count:,.0f} parameters, head not counted; claimed: {test['millions']:g}M"
    return Outcome(round(count / 1e6, digits) <= test["millions"], words)


def _planned_or_run(method: str, task: str, ours: StudyRecords, what: str) -> float | None:
    for record in ours.by_seed(method, task).values():
        assert record.params
        params = record.params
        return params.trainable_share_of_backbone_percent if what == "share" else params.trainable_method
    costs = ours.costs(method, task)
    if costs is None:
        return None
    return costs.trainable_share_of_backbone_percent if what == "share" else costs.trainable_method


def ratio(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """The geometric mean over tasks of the ratio of the two methods' means over seeds."""
    ratios, pairs = {}, [(method, task) for method in (test["of"], test["over"]) for task in test["tasks"]]
    for task in test["tasks"]:
        above, below = (_quantity(test["quantity"], method, task, ours) for method in (test["of"], test["over"]))
        if above is None or not below:
            return not_run(pairs, ours, f"{test['quantity']} was not measured for both on {task}")
        ratios[task] = above / below
    if not ratios:
        return not_run(pairs, ours)
    mean = statistics.geometric_mean(ratios.values())
    spread = f" ({min(ratios.values()):.2f} to {max(ratios.values()):.2f} over {len(ratios)} tasks)"
    words = (
        f"{test['quantity']}: {test['of']} over {test['over']} {mean:.2f}{spread if len(ratios) > 1 else ''}; "
        f"claimed: {test['at_least']:g} at least"
    )
    return Outcome(round(mean, 9) >= test["at_least"], words)


def _quantity(quantity: str, method: str, task: str, ours: StudyRecords) -> float | None:
    found: list[float | None] = []
    for record in ours.by_seed(method, task).values():
        node: Any = record
        for name in QUANTITIES[quantity]:
            node = getattr(node, name, None)
        found.append(node)
    measured = Statistic.of(found)
    if measured is not None:
        return measured.mean
    costs = ours.costs(method, task)
    if costs is None:
        return None
    if quantity == "ledger_peak":
        return costs.peak_bytes
    if quantity == "trainable" and costs.trainable_method is not None:
        return costs.trainable_method + (costs.trainable_head or 0)
    return None
