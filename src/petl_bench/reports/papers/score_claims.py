"""Claims on scores against scores, paired by task and seed."""

from __future__ import annotations

import statistics
from typing import Any

from petl_bench.reports.papers.outcome import Outcome, not_run
from petl_bench.reports.statistics.study_records import StudyRecords, in_points, is_error, score_of

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
