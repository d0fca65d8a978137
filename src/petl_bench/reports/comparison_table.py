"""What a report says of two methods: the table of comparisons, its notes, and each comparison as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from petl_bench.reports.differences import Difference, Differences
from petl_bench.reports.fields import MISSING, score_text
from petl_bench.reports.ranking import Analysis, MethodComparison
from petl_bench.reports.render import ReportTable
from petl_bench.reports.significance import LEAST_DATA_SETS, LEAST_VALUES, POWER, SIGNIFICANCE


def name(one: MethodComparison) -> str:
    """The method minus the reference."""
    return f"{one.method} − {one.reference}"


def show(one: MethodComparison, difference: float, *, sign: bool = False) -> str:
    """Formats a difference, in points if scores are percentages."""
    return score_text(difference, in_percent=one.points, sign=sign).replace("-", "−")


def show_p(p: float) -> str:
    """Formats a p value with two significant digits."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}".rstrip("0") if p < 0.01 else f"{p:.2g}"


def sentence(one: MethodComparison) -> str:
    """A comparison as a sentence with its numbers."""
    where = one.task if one.task is not None else "over data sets"
    found = one.difference
    if found is None:
        return f"{where}: {name(one)}: no seed that both finished"
    size = f"{show(one, found.mean, sign=True)}{' points' if one.points else ''}"
    if found.interval:
        size += f" [{show(one, found.interval[0])}, {show(one, found.interval[1])}]"
    return f"{where}: {name(one)}: {size}, {_evidence(one, found)}: {_verdict(one)}"


def _evidence(one: MethodComparison, found: Difference) -> str:
    if one.task is None:
        return _plural(found.n, "data set")
    if found.test == "rows":
        differing = "" if found.disagreements is None else f", which differ on {found.disagreements:,}"
        return f"one run each on {found.rows:,} rows{differing}"
    return _plural(found.n, "seed") + (f" x {found.rows:,} rows" if found.rows else "")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdict(one: MethodComparison) -> str:
    if one.p is None:
        if one.task is None:
            return f"too few to say anything about others ({LEAST_DATA_SETS} are needed)"
        return f"too few for a test ({LEAST_VALUES} are needed, with a spread)"
    p = f"p = {show_p(one.p)}".replace("= <", "<") + (f", corrected for {one.family}" if one.family > 1 else "")
    if one.verdict == "no difference shown":
        return f"no difference shown ({p})"
    if one.difference is not None and one.difference.test == "rows":
        return f"this run of {one.method} is {one.verdict} ({p}); another seed may give another order"
    return f"{one.method} is {one.verdict} ({p})"


def comparison_table(analysis: Analysis) -> ReportTable | None:
    """Makes the table of the comparisons within one results table; None if there is nothing to compare.

    Without a reference of the user's it shows the comparisons with the best of each column.
    """
    reference = analysis.reference
    chosen = [one for one in analysis.comparisons if reference or _is_with_best(one, analysis)]
    if not chosen:
        return None
    # Notes name the others once.
    shown = [one for one in chosen if one.p is not None]
    results = analysis.results
    unit = "points" if results.all_in_percent else "score (errors negated)"
    header = ["task", "comparison", f"difference, {unit}", "95 % CI", "n", "rows", "p", "p corrected", "verdict"]
    most_asked = tuple((column,) for column in (*header[:3], "verdict", "95 % CI", "p corrected"))
    against = f"with {reference}" if reference else "with the best mean"
    title = f"{results.title}: comparisons {against}"
    return ReportTable(title, header, list(map(_cells, shown)), _notes(analysis, chosen, shown), priority=most_asked)


def _is_with_best(one: MethodComparison, analysis: Analysis) -> bool:
    """Whether the reference has the best mean of its column, among the methods that finished there."""
    results, averages = analysis.results, analysis.ranking.averages
    if one.task is None:
        best = max(averages, key=lambda method: averages[method], default=None)
        return one.method in averages and one.reference == best
    sign = 1 if results.in_percent(one.task) else -1
    means = {method: sign * score.mean for method in results.methods if (score := results.score(method, one.task))}
    return one.reference == max(means, key=lambda method: means[method])


def _cells(one: MethodComparison) -> list[str]:
    found = one.difference
    task = one.task or "data sets"
    assert found
    assert found.p is not None
    assert one.p is not None
    interval = f"[{show(one, found.interval[0])}, {show(one, found.interval[1])}]" if found.interval else MISSING
    single = " (one run each)" if found.test == "rows" else ""
    rows = f"{found.rows:,}" if found.rows else MISSING
    difference = show(one, found.mean, sign=True)
    return [
        task,
        name(one),
        difference,
        interval,
        str(found.n),
        rows,
        show_p(found.p),
        show_p(one.p),
        one.verdict + single,
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
    used = dict.fromkeys(one.difference.test for one in shown if one.difference and one.difference.test)
    notes += [_TESTS[test] for test in used]
    partial = {one.tasks for one in shown if one.task is None} - {tuple(analysis.results.tasks)}
    notes += [
        f"data sets, {name(one)}: the tasks that both finished: {', '.join(one.tasks)}"
        for one in shown
        if one.task is None and one.tasks in partial and one.difference
    ]
    family = "every pair of methods, as the best was picked by looking"
    if analysis.reference:
        family = f"the comparisons with {analysis.reference}"
    method = "by Holm's method; over data sets by the largest statistic of each flip"
    return [
        *notes,
        f"difference: mean over the n seeds that both finished; verdict: p corrected < {SIGNIFICANCE}",
        f"p corrected: for {family}, on each task, {method}",
    ]


def _powers(shown: Sequence[MethodComparison]) -> list[str]:
    """Says for each task how large a difference its runs can show, and what seeds and rows add to the error."""
    notes = []
    for task in dict.fromkeys(one.task for one in shown if one.task is not None):
        known = [
            (one, one.difference, one.difference.estimate)
            for one in shown
            if one.task == task and one.difference and one.difference.estimate
        ]
        if not known:
            continue
        one, first, _ = known[0]
        size = median(estimate.detectable(other.family) for other, _, estimate in known)
        unit = " points" if one.points else ""
        note = f"{task}: {_evidence(one, first).partition(', which')[0]} show differences of about "
        note += f"{show(one, size)}{unit} or more ({100 * POWER:.0f} % of the time)"
        if first.test == "seeds and rows":
            seeds = median(estimate.error for _, _, estimate in known)
            rows = median(estimate.normal_error for _, _, estimate in known)
            note += f"; standard error: seeds {show(one, seeds)}, rows {show(one, rows)}{unit}"
        notes.append(note)
    return notes


def _untested(chosen: Sequence[MethodComparison]) -> list[str]:
    """One note on the tasks where methods cannot be tested."""
    untested: dict[str, list[str]] = {}
    for one in chosen:
        if one.task is not None and one.p is None:
            untested.setdefault(one.task, []).append(one.method)
    if not untested:
        return []
    where = "; ".join(f"{task} ({', '.join(methods)})" for task, methods in untested.items())
    return [f"too few seeds in common for a test ({LEAST_VALUES} are needed, with a spread): {where}"]


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


def comparison_row(one: MethodComparison) -> dict[str, Any]:
    """A comparison as plain containers; `task` is None over data sets, and differences are fractions."""
    found = one.difference
    interval = found.interval if found else None
    estimate = found.estimate if found else None
    return {
        "table": one.results,
        "task": one.task,
        "tasks": list(one.tasks),
        "method": one.method,
        "reference": one.reference,
        "n": found.n if found else 0,
        "rows": found.rows if found else None,
        "disagreements": found.disagreements if found else None,
        "difference": found.mean if found else None,
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "seeds_error": estimate.error if estimate and found and "seeds" in (found.test or "") else None,
        "rows_error": estimate.normal_error if estimate and found and found.test == "seeds and rows" else None,
        "detectable": estimate.detectable(one.family) if estimate and one.task is not None else None,
        "test": found.test if found else None,
        "p": found.p if found else None,
        "p_corrected": one.p,
        "corrected_for": one.family,
        "verdict": one.verdict,
        "sentence": sentence(one),
    }
