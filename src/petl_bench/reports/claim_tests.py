"""The tests that a claim can ask for: scores against scores, costs, chosen layers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from petl_bench.reports.results_table import StudyRecords, in_points, is_error, score_of
from petl_bench.reports.significance import Statistic


@dataclass(frozen=True)
class Outcome:
    """`holds` is None where runs are missing; `numbers` are in words."""

    holds: bool | None
    numbers: str


def not_run(cells: list[tuple[str, str]], ours: StudyRecords, words: str = "") -> Outcome:
    """No verdict: how many runs of these (method, task) are missing; where none is, what else is, in `words`."""
    missing = {cell: ours.num_missing(*cell) for cell in cells}
    total = sum(missing.values())
    first = next((f"{method} on {task}" for (method, task), number in missing.items() if number), "")
    if not total:
        return Outcome(None, words or "not measured in the runs that are there")
    return Outcome(None, f"{total} {'run is' if total == 1 else 'runs are'} missing, the first of them {first}")


# Where a difference must show: on the mean over tasks, on most of them, on every one.
NEEDS = ("mean", "most", "every")


def better(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """Against each of the others.

    On the mean: by more than two standard errors of the paired differences, and by `at_least` points. On most or on
    every task: by more than 0 on the task's mean, and by `at_least` points.
    """
    least = test.get("at_least", 0)
    outcomes = []
    for other in test["than"]:
        differences = _differences(test["method"], other, test, ours)
        if isinstance(differences, Outcome):
            return differences
        needs = test.get("needs", "mean")
        if needs == "mean":
            every = [value for values in differences.values() for value in values]
            if len(every) < 2:
                return Outcome(None, f"{test['method']} against {other}: one pair has no spread, two are needed")
            mean, error = statistics.fmean(every), statistics.stdev(every) / len(every) ** 0.5
            holds = mean > 2 * error and mean >= least
        else:
            means = [round(statistics.fmean(values), 9) for values in differences.values()]
            holds = _enough([mean > 0 and mean >= least for mean in means], needs)
        outcomes.append(Outcome(holds, _in_words(test["method"], other, differences, ours)))
    asked = f"; claimed: {least:g} points at least" if least else ""
    return Outcome(all(outcome.holds for outcome in outcomes), "; ".join(o.numbers for o in outcomes) + asked)


def comparable(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """Not more than `within` points behind: on the mean, on most tasks or on every task."""
    differences = _differences(test["method"], test["to"], test, ours)
    if isinstance(differences, Outcome):
        return differences
    needs = test.get("needs", "mean")
    if needs == "mean":
        mean = statistics.fmean(value for values in differences.values() for value in values)
        holds = round(mean, 9) >= -test["within"]
    else:
        means = [round(statistics.fmean(values), 9) for values in differences.values()]
        holds = _enough([mean >= -test["within"] for mean in means], needs)
    words = _in_words(test["method"], test["to"], differences, ours)
    return Outcome(holds, f"{words}; claimed: not more than {test['within']:g} behind")


def _enough(wins: list[bool], needs: str) -> bool:
    return all(wins) if needs == "every" else 2 * sum(wins) > len(wins)


def _differences(method: str, other: str, test: dict[str, Any], ours: StudyRecords) -> dict[str, list[float]] | Outcome:
    """By task: the method less the other, seed by seed, in points; positive is better."""
    found: dict[str, list[float]] = {}
    cells = [(name, task) for name in (method, other) for task in test["tasks"]]
    if any(ours.num_missing(*cell) for cell in cells):
        return not_run(cells, ours)
    for task in test["tasks"]:
        metric = test.get("metric") or ours.primary_metric(task) or ""
        mine, theirs = ours.by_seed(method, task), ours.by_seed(other, task)
        sign = -1 if is_error(metric) else 1
        scores = [
            (score_of(mine[seed], metric), score_of(theirs[seed], metric))
            for seed in sorted(mine.keys() & theirs.keys())
        ]
        found[task] = [
            # Rounded, so that equal scores differ by 0 and a bound is kept that is met exactly.
            round(sign * (in_points(metric, score) - in_points(metric, against)), 9)
            for score, against in scores
            if score is not None and against is not None
        ]
        if not found[task]:
            return Outcome(None, f"{task}: no seed on which both {method} and {other} finished with {metric}")
    return found


def _in_words(method: str, other: str, differences: dict[str, list[float]], ours: StudyRecords) -> str:
    every = [value for values in differences.values() for value in values]
    spread = f" ± {statistics.stdev(every):.2f}" if len(every) > 1 else ""
    words = f"{method} - {other}: {statistics.fmean(every):+.2f}{spread} points over {len(every)} pairs"
    if len(differences) > 1:
        words += " (" + ", ".join(f"{task} {statistics.fmean(v):+.2f}" for task, v in differences.items()) + ")"
    failed = sum(ours.num_failed(name, task) for name in (method, other) for task in differences)
    return f"{words}, {failed} failed runs left out" if failed else words


# Where the record has a quantity, and the planned costs where they know it.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "ledger_peak": ("memory", "estimate", "peak_bytes"),
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


def same_choice(test: dict[str, Any], ours: StudyRecords) -> Outcome:
    """The layer that layers=variability chose, against that on the first task, seed by seed."""
    method = test["method"]
    cells = [(method, task) for task in test["tasks"]]
    if any(ours.num_missing(*cell) for cell in cells):
        return not_run(cells, ours)
    chosen = {
        task: {seed: record.layers.top for seed, record in ours.by_seed(method, task).items() if record.layers}
        for task in test["tasks"]
    }
    if not all(chosen.values()):
        return not_run(cells, ours)
    first = chosen[test["tasks"][0]]
    if not all(first.keys() & layers.keys() for layers in chosen.values()):
        return Outcome(None, f"no seed of {method} finished on all of {', '.join(test['tasks'])}")
    moves = [abs(layer - first[seed]) for layers in chosen.values() for seed, layer in layers.items() if seed in first]
    words = ", ".join(f"{task} {'/'.join(map(str, layers.values()))}" for task, layers in chosen.items())
    within = test.get("within", 0)
    return Outcome(max(moves) <= within, f"layer chosen by {method}, a seed each: {words}; claimed: {within:g} apart")
