"""Comparisons of two methods in a report: the table of comparisons, its notes, and each comparison as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from petl_bench.reports.differences import Difference, Differences
from petl_bench.reports.fields import MISSING, score_text
from petl_bench.reports.ranking import Analysis, MethodComparison
from petl_bench.reports.render import ReportTable
from petl_bench.reports.significance import LEAST_DATA_SETS, LEAST_VALUES, POWER, SIGNIFICANCE


def name(comparison: MethodComparison) -> str:
    """The name of a comparison: the method minus the reference."""
    return f"{comparison.method} − {comparison.reference}"


def show(comparison: MethodComparison, difference: float, *, sign: bool = False) -> str:
    """Formats a difference, in points if scores are percentages."""
    return score_text(difference, in_percent=comparison.points, sign=sign).replace("-", "−")


def show_p(p: float) -> str:
    """Formats a p value with two significant digits."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}".rstrip("0") if p < 0.01 else f"{p:.2g}"


def sentence(comparison: MethodComparison) -> str:
    """A comparison as a sentence with its numbers."""
    where = comparison.task if comparison.task is not None else "over data sets"
    difference = comparison.difference
    if difference is None:
        return f"{where}: {name(comparison)}: no seed that both finished"
    size = f"{show(comparison, difference.mean, sign=True)}{' points' if comparison.points else ''}"
    if difference.interval:
        size += f" [{show(comparison, difference.interval[0])}, {show(comparison, difference.interval[1])}]"
    return f"{where}: {name(comparison)}: {size}, {_evidence(comparison, difference)}: {_verdict(comparison)}"


def _evidence(comparison: MethodComparison, difference: Difference) -> str:
    if comparison.task is None:
        return _plural(difference.n, "data set")
    if difference.test == "rows":
        differing = "" if difference.disagreements is None else f", which differ on {difference.disagreements:,}"
        return f"one run each on {difference.rows:,} rows{differing}"
    return _plural(difference.n, "seed") + (f" x {difference.rows:,} rows" if difference.rows else "")


# Two seeds do where runs keep their predictions; seeds with equal differences show no spread.
_NEEDED = f"{LEAST_VALUES} are needed, or 2 with predictions, with a spread"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdict(comparison: MethodComparison) -> str:
    if comparison.p is None:
        if comparison.task is None:
            return f"too few to say anything about others ({LEAST_DATA_SETS} are needed)"
        return f"too few for a test ({_NEEDED})"
    p = f"p = {show_p(comparison.p)}".replace("= <", "<") + (
        f", corrected for {comparison.family}" if comparison.family > 1 else ""
    )
    if comparison.verdict == "no difference shown":
        return f"no difference shown ({p})"
    if comparison.difference is not None and comparison.difference.test == "rows":
        return f"this run of {comparison.method} is {comparison.verdict} ({p}); another seed may give another order"
    return f"{comparison.method} is {comparison.verdict} ({p})"


def comparison_table(analysis: Analysis) -> ReportTable | None:
    """Makes the table of the comparisons within one results table; None if there is nothing to compare.

    If the user names no reference, it shows the comparisons with the best method of each column.
    """
    reference = analysis.reference
    chosen = [comparison for comparison in analysis.comparisons if reference or _is_with_best(comparison, analysis)]
    if not chosen:
        return None
    # Comparisons without a test are listed in the notes instead.
    shown = [comparison for comparison in chosen if comparison.p is not None]
    results = analysis.results
    unit = "points" if results.all_in_percent else "score (errors negated)"
    header = ["task", "comparison", f"difference, {unit}", "95 % CI", "n", "rows", "p", "p corrected", "verdict"]
    priority = tuple((column,) for column in (*header[:3], "verdict", "95 % CI", "p corrected"))
    against = f"with {reference}" if reference else "with the best mean"
    title = f"{results.title}: comparisons {against}"
    return ReportTable(title, header, list(map(_cells, shown)), _notes(analysis, chosen, shown), priority=priority)


def _is_with_best(comparison: MethodComparison, analysis: Analysis) -> bool:
    """Whether the reference has the best mean in its column, among the methods that finished there."""
    results, averages = analysis.results, analysis.ranking.averages
    if comparison.task is None:
        best = max(averages, key=lambda method: averages[method], default=None)
        return comparison.method in averages and comparison.reference == best
    sign = 1 if results.in_percent(comparison.task) else -1
    means = {
        method: sign * score.mean for method in results.methods if (score := results.score(method, comparison.task))
    }
    return comparison.reference == max(means, key=lambda method: means[method])


def _cells(comparison: MethodComparison) -> list[str]:
    difference = comparison.difference
    task = comparison.task or "data sets"
    assert difference
    assert difference.p is not None
    assert comparison.p is not None
    ends = [show(comparison, end) for end in difference.interval or ()]
    interval = f"[{', '.join(ends)}]" if ends else MISSING
    single = " (one run each)" if difference.test == "rows" else ""
    rows = f"{difference.rows:,}" if difference.rows else MISSING
    return [
        task,
        name(comparison),
        show(comparison, difference.mean, sign=True),
        interval,
        str(difference.n),
        rows,
        show_p(difference.p),
        show_p(comparison.p),
        comparison.verdict + single,
    ]


_TESTS = {
    "seeds and rows": "t test over seeds and rows: would another training, scored on other rows, show it again?",
    "seeds": (
        "paired t test over seeds: would another training, scored on the same rows, show it again? Other rows may not, "
        "as these runs have kept no predictions"
    ),
    "rows": (
        "of one run each, McNemar's exact test over rows, or a t test where the metric is not accuracy: it speaks of "
        "these two runs alone, not of the methods"
    ),
    "data sets": "sign-flip test over data sets: would other data sets show it again?",
}


def _notes(analysis: Analysis, chosen: Sequence[MethodComparison], shown: Sequence[MethodComparison]) -> list[str]:
    notes = [*_powers(shown), *_untested(chosen), *_data_sets(analysis.differences)]
    used = dict.fromkeys(
        comparison.difference.test for comparison in shown if comparison.difference and comparison.difference.test
    )
    notes += [_TESTS[test] for test in used]
    partial = {comparison.tasks for comparison in shown if comparison.task is None} - {tuple(analysis.results.tasks)}
    notes += [
        f"data sets, {name(comparison)}: the tasks that both finished: {', '.join(comparison.tasks)}"
        for comparison in shown
        if comparison.task is None and comparison.tasks in partial and comparison.difference
    ]
    family = "every pair of methods, as the best was picked by looking"
    if analysis.reference:
        family = f"the comparisons with {analysis.reference}"
    correction = "by Holm's method; over data sets by the largest statistic of each flip"
    return [
        *notes,
        f"difference: mean over the n seeds that both finished; verdict: p corrected < {SIGNIFICANCE}",
        f"p corrected: for {family}, on each task, {correction}",
    ]


def _powers(shown: Sequence[MethodComparison]) -> list[str]:
    """States for each task how large a difference its runs can show, and how much seeds and rows add to the error."""
    notes = []
    for task in dict.fromkeys(comparison.task for comparison in shown if comparison.task is not None):
        known = [
            (comparison, comparison.difference, comparison.difference.estimate)
            for comparison in shown
            if comparison.task == task and comparison.difference and comparison.difference.estimate
        ]
        if not known:
            continue
        comparison, difference, _ = known[0]
        size = median(estimate.detectable(comparison.family) for comparison, _, estimate in known)
        unit = " points" if comparison.points else ""
        note = f"{task}: {_evidence(comparison, difference).partition(', which')[0]} show differences of about "
        note += f"{show(comparison, size)}{unit} or more (65 to {100 * POWER:.0f} % of the time)"
        if difference.test == "seeds and rows":
            seeds = median(estimate.error for _, _, estimate in known)
            rows = median(estimate.normal_error for _, _, estimate in known)
            note += f"; standard error: seeds {show(comparison, seeds)}, rows {show(comparison, rows)}{unit}"
        notes.append(note)
    return notes


def _untested(chosen: Sequence[MethodComparison]) -> list[str]:
    """One note on the tasks where methods cannot be tested."""
    untested: dict[str, list[str]] = {}
    for comparison in chosen:
        if comparison.task is not None and comparison.p is None:
            untested.setdefault(comparison.task, []).append(comparison.method)
    if not untested:
        return []
    where = "; ".join(f"{task} ({', '.join(methods)})" for task, methods in untested.items())
    return [f"too few seeds in common for a test ({_NEEDED}): {where}"]


def _data_sets(differences: Differences) -> list[str]:
    notes = [
        f"{', '.join(tasks)} are scored on the same rows: one data set"
        for tasks in differences.data_sets
        if len(tasks) > 1
    ]
    number = len(differences.data_sets)
    if len(differences.results.tasks) > 1 and number < LEAST_DATA_SETS:
        few = f"{_plural(number, 'data set')} {'is' if number == 1 else 'are'} too few to say anything about others"
        notes.append(f"{few} ({LEAST_DATA_SETS} are needed)")
    return notes


def comparison_row(comparison: MethodComparison) -> dict[str, Any]:
    """A comparison as plain containers; `task` is None for data sets, and differences are fractions."""
    difference = comparison.difference
    interval = difference.interval if difference else None
    estimate = difference.estimate if difference else None
    test = difference.test if difference else None
    return {
        "table": comparison.results,
        "task": comparison.task,
        "tasks": list(comparison.tasks),
        "method": comparison.method,
        "reference": comparison.reference,
        "n": difference.n if difference else 0,
        "rows": difference.rows if difference else None,
        "disagreements": difference.disagreements if difference else None,
        "difference": difference.mean if difference else None,
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "seeds_error": estimate.error if estimate and "seeds" in (test or "") else None,
        "rows_error": estimate.normal_error if estimate and test == "seeds and rows" else None,
        "detectable": estimate.detectable(comparison.family) if estimate and comparison.task is not None else None,
        "test": test,
        "p": difference.p if difference else None,
        "p_corrected": comparison.p,
        "corrected_for": comparison.family,
        "verdict": comparison.verdict,
        "sentence": sentence(comparison),
    }
