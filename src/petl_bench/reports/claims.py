"""Claims of papers, tested on the records of a study with a small fixed set of tests.

The `test` of a claim names its `kind`. Methods and tasks have the names of the study; without `tasks`, a test covers
all of them. Points are percentage points of the primary metric, or of `metric`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.schema import Record
from petl_bench.records.study_file import Claim, StudyFile
from petl_bench.reports.fields import FIELDS, QUANTITIES, Field
from petl_bench.reports.machines import means_on_one_machine
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import StudyRecords, in_points, is_error, score_of
from petl_bench.reports.significance import LEAST_VALUES, Statistic

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable here"
NOT_RUN = "not run yet"
TOO_FEW = "too few seeds"
UNDECIDED = "undecided"


def claim_rows(study: StudyFile, records: Iterable[Record]) -> list[dict[str, Any]]:
    """Makes one mapping per claim: claim, source, verdict, and a sentence with the underlying numbers.

    Raises:
        RequestError: If the test of a claim has an unknown kind, or names something that the study does not have.
    """
    ours = StudyRecords(study, records)
    return [_row(claim, ours) for claim in study.claims]


def _row(claim: Claim, ours: StudyRecords) -> dict[str, Any]:
    check_claim(claim, ours.study.methods, ours.study.tasks)
    outcome = Finding(None, claim.untestable, NOT_TESTABLE) if claim.untestable else apply_test(claim.test, ours)
    return {"claim": claim.claim, "source": claim.source, "verdict": outcome.verdict, "numbers": outcome.numbers}


def claims_table(study: StudyFile, records: Iterable[Record]) -> ReportTable | None:
    """Makes the table of claims with their verdicts, with deviations as notes; None if the study has no claims."""
    rows = claim_rows(study, records)
    if not rows:
        return None
    header, prose = ["claim", "verdict", "numbers", "source"], ("claim", "numbers", "source")
    cells, notes = [[row[name] for name in header] for row in rows], [f"deviation: {d}" for d in study.deviations]
    return ReportTable(f"{study.name}: claims", header, cells, notes, prose=prose)


@dataclass(frozen=True)
class Finding:
    """The outcome of a test.

    Attributes:
        holds: Whether the claim holds; None if there is no verdict.
        numbers: A sentence with the underlying numbers.
        otherwise: The text that replaces the verdict if there is none.
    """

    holds: bool | None
    numbers: str
    otherwise: str = NOT_RUN

    @property
    def verdict(self) -> str:
        """The verdict as it is printed."""
        return {None: self.otherwise, True: REPRODUCED, False: NOT_REPRODUCED}[self.holds]


def not_run(cells: list[tuple[str, str]], ours: StudyRecords, reason: str = "") -> Finding:
    """Makes a finding without a verdict that says how many runs of these (method, task) cells are missing.

    Args:
        cells: The cells that the test needs.
        ours: The records of the study.
        reason: What to say if no run is missing.
    """
    missing = {cell: ours.num_missing(*cell) for cell in cells}
    total = sum(missing.values())
    if not total:
        return Finding(None, reason or "not measured in the runs that are there")
    first = next(f"{method} on {task}" for (method, task), number in missing.items() if number)
    return Finding(None, f"{total} {'run is' if total == 1 else 'runs are'} missing, the first of them {first}")


_NEEDED = f"{LEAST_VALUES} seeds that finished every task, with a spread, are needed"
# Whether a test must hold for the mean over tasks, for most tasks, or for every task.
NEEDS = ("mean", "most", "every")


def better(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests whether a method is better than each of the others.

    `needs: mean` requires that the 95 % interval of the mean over tasks is above 0 and the mean at least `at_least`
    points; if not, and the interval reaches `at_least`, the claim is undecided. `needs: most` and `needs: every`
    require a mean above 0 and at least `at_least` on most or all tasks.
    """
    least, outcomes = test.get("at_least", 0), []
    for other in test["than"]:
        difference = _differences(test["method"], other, test, ours)
        if isinstance(difference, Finding):
            return difference
        if difference.interval is None:
            return difference.too_few()
        if test.get("needs", "mean") == "mean":
            low, high = difference.interval
            reached = low > 0 and difference.mean >= least
            holds = None if least and not reached and round(high, 9) >= least else reached
        else:
            holds = _enough([mean > 0 and mean >= least for mean in difference.by_task.values()], test["needs"])
        outcomes.append((holds, difference.text))
    claimed = f"; claimed: {least:g} points at least" if least else ""
    verdicts, text = {holds for holds, _ in outcomes}, "; ".join(text for _, text in outcomes) + claimed
    return Finding(False if False in verdicts else None if None in verdicts else True, text, UNDECIDED)


def comparable(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests whether a method is at most `within` points behind another: in the mean, on most tasks or on every task.

    For the mean, the whole 95 % interval decides: the claim is undecided if the bound lies inside the interval.
    """
    difference = _differences(test["method"], test["to"], test, ours)
    if isinstance(difference, Finding):
        return difference
    if difference.interval is None:
        return difference.too_few()
    bound = -test["within"]
    text = f"{difference.text}; claimed: not more than {test['within']:g} behind"
    if test.get("needs", "mean") == "mean":
        low, high = (round(end, 9) for end in difference.interval)
        return Finding(True if low >= bound else False if high < bound else None, text, UNDECIDED)
    return Finding(_enough([mean >= bound for mean in difference.by_task.values()], test["needs"]), text)


def _enough(wins: list[bool], needs: str) -> bool:
    return all(wins) if needs == "every" else 2 * sum(wins) > len(wins)


@dataclass(frozen=True)
class _Differences:
    """Differences of one method minus another in points, positive if the first is better.

    Attributes:
        mean: The mean over the tasks, and over the seeds that finished every task.
        interval: Its 95 % interval over these seeds; None for fewer than three seeds, or without a spread.
        by_task: The mean of each task.
        text: The numbers as a sentence.
    """

    mean: float
    interval: tuple[float, float] | None
    by_task: dict[str, float]
    text: str

    def too_few(self) -> Finding:
        return Finding(None, f"{self.text}; {_NEEDED}", TOO_FEW)


def _differences(method: str, other: str, test: dict[str, Any], ours: StudyRecords) -> _Differences | Finding:
    """Compares two methods on the tasks of a test."""
    cells = [(name, task) for name in (method, other) for task in test["tasks"]]
    if any(ours.num_missing(*cell) for cell in cells):
        return not_run(cells, ours)
    by_task = {task: _by_seed(method, other, task, test.get("metric"), ours) for task in test["tasks"]}
    for task, by_seed in by_task.items():
        if not by_seed:
            return Finding(None, f"{task}: no seed on which both {method} and {other} finished with its metric")
    seeds = set.intersection(*(set(by_seed) for by_seed in by_task.values()))
    means = Statistic.of(statistics.fmean(by_seed[seed] for by_seed in by_task.values()) for seed in sorted(seeds))
    of_tasks = {task: round(statistics.fmean(by_seed.values()), 9) for task, by_seed in by_task.items()}
    mean = means.mean if means else statistics.fmean(of_tasks.values())
    interval = means.interval() if means else None
    shown = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    text = f"{method} - {other}: {mean:+.2f}{shown} points over {len(seeds)} seeds"
    if len(of_tasks) > 1:
        text += " (" + ", ".join(f"{task} {value:+.2f}" for task, value in of_tasks.items()) + ")"
    if failed := sum(ours.num_failed(*cell) for cell in cells):
        text += f", {failed} failed runs left out"
    return _Differences(round(mean, 9), interval, of_tasks, text)


def _by_seed(method: str, other: str, task: str, metric: str | None, ours: StudyRecords) -> dict[int, float]:
    metric = metric or ours.primary_metric(task) or ""
    records, others = ours.by_seed(method, task), ours.by_seed(other, task)
    sign, differences = -1 if is_error(metric) else 1, {}
    for seed in sorted(records.keys() & others.keys()):
        score, against = score_of(records[seed], metric), score_of(others[seed], metric)
        if score is not None and against is not None:
            # Rounding ensures that equal scores differ by exactly 0 and that bounds can be met exactly.
            differences[seed] = round(sign * (in_points(metric, score) - in_points(metric, against)), 9)
    return differences


def share_at_most(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests the largest share of the backbone (head included) over the tasks against `percent`."""
    field = FIELDS["params_trainable_share_of_backbone_percent"]
    share = _most_parameters(field, test, ours)
    if share is None:
        return not_run([(test["method"], task) for task in test["tasks"]], ours)
    text = f"{test['method']} trains {share:.3f} % of the backbone, head included; claimed: {test['percent']:g} %"
    return Finding(_rounded_as(share, test["percent"]) <= test["percent"], text)


def params_at_most(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests the method's own parameters, without the head's, against `millions`."""
    count = _most_parameters(FIELDS["params_trainable_method"], test, ours)
    if count is None:
        return not_run([(test["method"], task) for task in test["tasks"]], ours)
    text = f"{test['method']} trains {count:,.0f} parameters, head not counted; claimed: {test['millions']:g}M"
    return Finding(_rounded_as(count / 1e6, test["millions"]) <= test["millions"], text)


def _most_parameters(field: Field, test: dict[str, Any], ours: StudyRecords) -> float | None:
    """The largest number over the tasks, from a finished run or else from the plan; None if both are missing."""
    numbers = []
    for task in test["tasks"]:
        record = next(iter(ours.by_seed(test["method"], task).values()), None)
        numbers.append(field.value(record) if record else field.planned_value(ours.costs(test["method"], task)))
    return max((value for value in numbers if value is not None), default=None)


def _rounded_as(value: float, claimed: float) -> float:
    """Rounds a value to the decimals of the claim: 0.534 becomes 0.53 if 0.53 is claimed."""
    return round(value, len(str(claimed).partition(".")[2]))


def ratio(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests the ratio of two methods' means over seeds, as the geometric mean over tasks, against `at_least`.

    For outcomes of training, such as the number of updates that it takes, the 95 % interval over seeds decides.
    """
    if FIELDS[QUANTITIES[test["quantity"]]].kind == "score":
        return _ratio_over_seeds(test, ours)
    ratios, pairs = {}, [(method, task) for method in (test["of"], test["over"]) for task in test["tasks"]]
    for task in test["tasks"]:
        means = _quantities(test["quantity"], (test["of"], test["over"]), task, ours)
        if means is None or not means[1]:
            return not_run(pairs, ours, f"{test['quantity']} was not measured for both on {task}, on one machine")
        ratios[task] = means[0] / means[1]
    if not ratios:
        return not_run(pairs, ours)
    mean = statistics.geometric_mean(ratios.values())
    spread = f" ({min(ratios.values()):.2f} to {max(ratios.values()):.2f} over {len(ratios)} tasks)"
    text = (
        f"{test['quantity']}: {test['of']} over {test['over']} {mean:.2f}{spread if len(ratios) > 1 else ''}; "
        f"claimed: {test['at_least']:g} at least"
    )
    return Finding(round(mean, 9) >= test["at_least"], text)


def _ratio_over_seeds(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests the ratio seed by seed: the geometric mean over tasks and its interval, computed from logarithms."""
    field, methods = FIELDS[QUANTITIES[test["quantity"]]], (test["of"], test["over"])
    cells = [(method, task) for method in methods for task in test["tasks"]]
    if any(ours.num_missing(*cell) for cell in cells):
        return not_run(cells, ours)
    logs = []
    for task in test["tasks"]:
        of, over = ({seed: field.value(record) for seed, record in ours.by_seed(m, task).items()} for m in methods)
        logs.append({seed: math.log(of[seed] / over[seed]) for seed in of if of[seed] and over.get(seed)})
    seeds = sorted(set.intersection(*map(set, logs)))
    means = Statistic.of(statistics.fmean(by_seed[seed] for by_seed in logs) for seed in seeds)
    unknown = len({seed for cell in cells for seed in ours.by_seed(*cell)} - set(seeds))
    left_out = f"; {unknown} {'seed' if unknown == 1 else 'seeds'} without a value left out" if unknown else ""
    # Without a spread, all runs may have reached the mark at their first evaluation.
    if not means or not means.sd or not (interval := means.interval()):
        return Finding(None, f"{test['quantity']}: {_NEEDED}{left_out}", TOO_FEW)
    mean, low, high = (round(math.exp(value), 9) for value in (means.mean, *interval))
    text = f"{test['quantity']}: {test['of']} over {test['over']} {mean:.2f} [{low:.2f}, {high:.2f}] over "
    text += f"{len(seeds)} seeds; claimed: {test['at_least']:g} at least"
    runs = [[one for t in test["tasks"] for seed, one in ours.by_seed(m, t).items() if seed in seeds] for m in methods]
    at_once = [sum(field.value(one) == one.history[0].step for one in of_method) for of_method in runs]
    has_bounds = test["quantity"] == "updates_to_95_percent" and any(at_once)
    if has_bounds:
        text += "; upper bounds, reached at the first evaluation: "
        text += " and ".join(f"{n} of {len(runs[0])} values of {m}" for n, m in zip(at_once, methods, strict=True))
    # With upper bounds among the values, neither the ratio nor its interval is known.
    holds = True if low >= test["at_least"] else False if high < test["at_least"] else None
    return Finding(None if has_bounds else holds, text + left_out, UNDECIDED)


def _quantities(quantity: str, methods: tuple[str, str], task: str, ours: StudyRecords) -> tuple[float, float] | None:
    """The means of a quantity over the seeds of two methods; the planned value for a method without runs.

    Returns:
        None if either is unknown or, for times and other machine-dependent quantities, if no machine measured both.
    """
    field = FIELDS[QUANTITIES[quantity]]
    first, second = (list(ours.by_seed(method, task).values()) for method in methods)
    if field.depends_on_machine:
        return means_on_one_machine(field, first, second)
    means = [Statistic.of(field.value(record) for record in records) for records in (first, second)]
    known = [
        mean.mean if mean else field.planned_value(ours.costs(method, task))
        for method, mean in zip(methods, means, strict=True)
    ]
    return None if None in known else (known[0], known[1])


def same_choice(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Tests whether layers=variability chose nearly the same layer on every task as on the first, seed by seed."""
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
        return Finding(None, f"no seed of {method} finished on all of {', '.join(test['tasks'])}")
    moves = [abs(layer - first[seed]) for layers in chosen.values() for seed, layer in layers.items() if seed in first]
    text = ", ".join(f"{task} {'/'.join(map(str, layers.values()))}" for task, layers in chosen.items())
    within = test.get("within", 0)
    return Finding(max(moves) <= within, f"layer chosen by {method}, a seed each: {text}; claimed: {within:g} apart")


@dataclass(frozen=True)
class ClaimTest:
    """A kind of test: the function that computes it, and the keys that it accepts."""

    test: Callable[[dict[str, Any], StudyRecords], Finding]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


CLAIM_TESTS = {
    "share_at_most": ClaimTest(share_at_most, ("method", "percent")),
    "params_at_most": ClaimTest(params_at_most, ("method", "millions")),
    "ratio": ClaimTest(ratio, ("quantity", "of", "over", "at_least")),
    "better": ClaimTest(better, ("method", "than"), ("at_least", "metric", "needs")),
    "comparable": ClaimTest(comparable, ("method", "to", "within"), ("metric", "needs")),
    "same_choice": ClaimTest(same_choice, ("method", "tasks"), ("within",)),
}

_ONE_NAME = ("kind", "method", "to", "of", "over", "quantity", "metric", "needs")
_NAMES = ("than", "tasks")


def apply_test(test: dict[str, Any], ours: StudyRecords) -> Finding:
    """Runs the test of a claim that has passed `check_claim`."""
    test = {"tasks": ours.study.tasks} | test
    lists = {key: _as_list(test[key]) for key in _NAMES if key in test}
    return CLAIM_TESTS[test["kind"]].test(test | lists, ours)


def check_claim(claim: Claim, methods: Iterable[str], tasks: Iterable[str]) -> None:
    """Checks that a claim can be tested on a study with these methods and tasks.

    Raises:
        RequestError: If it cannot be tested; the message names the claim.
    """
    where = f"The claim {claim.claim!r}: test"
    if claim.untestable is not None:
        if claim.test:
            raise RequestError(f"{where} and untestable are both given: leave one out.")
        return
    test = claim.test
    for key, value in test.items():
        if key in _ONE_NAME and not isinstance(value, str):
            raise RequestError(f"{where}.{key}={value} must be one name.")
        if key in _NAMES and not (_as_list(value) and all(isinstance(name, str) for name in _as_list(value))):
            raise RequestError(f"{where}.{key}={value} must be a name or a list of names.")
    if test.get("kind") not in CLAIM_TESTS:
        raise unknown_choice(f"{where}.kind", test.get("kind"), CLAIM_TESTS)
    claim_test = CLAIM_TESTS[test["kind"]]
    allowed = ("kind", "tasks", *claim_test.required, *claim_test.optional)
    for key in test:
        if key not in allowed:
            raise unknown_choice(f"{where} has a key that kind={test['kind']} does not take: key", key, allowed)
    for key in claim_test.required:
        if key not in test:
            raise RequestError(f"{where} of kind={test['kind']} must give {key}.")
    named = [name for key in ("method", "than", "to", "of", "over") for name in _as_list(test.get(key, []))]
    for names, known, what in ((named, methods, "method"), (_as_list(test.get("tasks", [])), tasks, "task")):
        for name in names:
            if name not in set(known):
                raise unknown_choice(f"{where} names a {what} that the study does not have: {what}", name, known)
    for key, choices in (("quantity", QUANTITIES), ("needs", NEEDS)):
        if key in test and test[key] not in choices:
            raise unknown_choice(f"{where}.{key}", test[key], choices)
    for key in ("percent", "millions", "at_least", "within"):
        if key in test and not isinstance(test[key], int | float):
            raise RequestError(f"{where}.{key}={test[key]} must be a number.")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
