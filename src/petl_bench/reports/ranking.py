"""Ranks the methods of a results table, determines which are bold, and compares methods with a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean

from petl_bench.errors import RequestError
from petl_bench.reports.differences import Difference, Differences, Pair
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.significance import SIGNIFICANCE, Statistic, average_ranks, holm


@dataclass(frozen=True)
class ColumnRanking:
    """The methods of one column against its best.

    Attributes:
        bold: The best method and all that are not significantly different from it; empty if no test is possible.
        p: By method, the p value against the best; corrected for all pairs of the column, because the best was chosen
            after seeing the scores.
        untested: The methods with too few seeds or data sets for a test.
    """

    bold: frozenset[str] = frozenset()
    p: dict[str, float] = field(default_factory=dict)
    untested: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """The rankings of all columns of a results table.

    Attributes:
        tasks: The ranking of each task's column.
        averages: The mean over tasks, by method; only methods with a score on every task have one.
        average: The ranking of the column of averages.
        ranks: The mean rank of each method that has a score, over the (task, seed) pairs that all of them finished.
        blocks: The number of these pairs.
    """

    tasks: dict[str, ColumnRanking]
    averages: dict[str, float]
    average: ColumnRanking
    ranks: dict[str, float]
    blocks: int


@dataclass(frozen=True)
class MethodComparison:
    """One method against another on one task, or over data sets.

    Attributes:
        results: The title of the results table that holds both.
        task: The task; None over data sets.
        tasks: The tasks that both finished.
        points: Whether scores are percentages, so that differences are points.
        difference: `method` minus `reference`; None if they share no seed.
        p: The p value corrected for the `family`; None without a test.
        family: The number of comparisons that are tested together.
    """

    results: str
    task: str | None
    tasks: tuple[str, ...]
    method: str
    reference: str
    points: bool
    difference: Difference | None
    p: float | None = None
    family: int = 1

    @property
    def verdict(self) -> str:
        """What the test says: `better`, `worse`, `no difference shown`, or `not tested`."""
        if self.difference is None or self.p is None:
            return "not tested"
        if self.p >= SIGNIFICANCE:
            return "no difference shown"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True)
class Analysis:
    """One results table with its statistics; every form of a report is made from it.

    Attributes:
        differences: The results table with the differences between its methods.
        ranking: The ranking of the methods.
        comparisons: The comparisons with the user's reference, or of every pair.
        reference: The user's reference method; None compares every pair.
    """

    differences: Differences
    ranking: Ranking
    comparisons: list[MethodComparison]
    reference: str | None = None

    @property
    def results(self) -> ResultsTable:
        """The results table."""
        return self.differences.results

    def bold_runs(self) -> list[str]:
        """The keys of all runs whose method is bold in its task's column."""
        cells = self.results.cells
        groups = [cells[method, task].group for task, column in self.ranking.tasks.items() for method in column.bold]
        return [record.run_key for group in groups if group for record in group.records]

    def tested_pairs(self) -> list[tuple[str, str, int]]:
        """Every pair of methods that is tested on a task: the key of one run of each, and 1, -1 or 0.

        1 if the first is better, -1 if it is worse, 0 if no difference is shown, corrected for all pairs of the task.
        Tests of single runs are left out, because they allow no conclusion about methods.
        """
        comparisons = self.comparisons if self.reference is None else compare_methods(self.differences, None)
        signs = {"better": 1, "worse": -1, "no difference shown": 0}
        pairs = []
        for comparison in comparisons:
            if comparison.task is None or comparison.verdict not in signs:
                continue
            if comparison.difference is None or comparison.difference.test == "rows":
                continue
            groups = [
                self.results.cells[method, comparison.task].group
                for method in (comparison.method, comparison.reference)
            ]
            first, second = (group.first.run_key for group in groups if group is not None)
            pairs.append((first, second, signs[comparison.verdict]))
        return pairs


def analyse(all_differences: Sequence[Differences], statistic: str, reference: str | None) -> list[Analysis]:
    """Ranks and compares the methods of every results table of a report.

    Args:
        all_differences: The results tables with the differences of their methods.
        statistic: `mean` or `median`, which selects the best.
        reference: The method to compare all others with; None compares every pair.

    Returns:
        One analysis per table, in the same order.

    Raises:
        RequestError: If no table has a finished run of the named method.
    """
    labels = dict.fromkeys(group.label for differences in all_differences for group in differences.results.groups())
    if reference is not None and reference not in labels:
        raise RequestError(
            f"--compare {reference}: no finished run of it here; there are {', '.join(labels) or 'none'}."
        )
    return [
        Analysis(differences, rank_methods(differences, statistic), compare_methods(differences, reference), reference)
        for differences in all_differences
    ]


def central(statistic: Statistic, name: str) -> float:
    """Selects the mean or the median of a statistic by name."""
    return statistic.median if name == "median" else statistic.mean


def rank_methods(differences: Differences, statistic: str = "mean") -> Ranking:
    """Ranks the methods of a results table on every task and on average.

    Args:
        differences: The results table with the differences of its methods.
        statistic: `mean` or `median`, which selects the best. Tests always use mean differences.

    Returns:
        The ranking of each task and of the averages.
    """
    results = differences.results
    tasks = {task: _task_ranking(differences, task, statistic) for task in results.tasks}
    averages = _averages(differences, statistic)
    average = _column(averages, _compare_over_data_sets(differences, combinations(averages, 2)))
    ranks, blocks = average_ranks({method: scores for method in results.methods if (scores := results.scores(method))})
    return Ranking(tasks, averages, average, ranks, blocks)


def _task_ranking(differences: Differences, task: str, statistic: str) -> ColumnRanking:
    results = differences.results
    sign = 1 if results.in_percent(task) else -1
    scores = {method: score for method in results.methods if (score := results.score(method, task))}
    centres = {method: sign * central(score, statistic) for method, score in scores.items()}
    return _column(centres, _compare_on_task(differences, task, combinations(centres, 2)))


def _averages(differences: Differences, statistic: str) -> dict[str, float]:
    """Averages over all tasks by method; empty if the tasks differ in their unit."""
    results = differences.results
    if not differences.are_averaged:
        return {}
    averages = {}
    for method in results.methods:
        scores = [score for task in results.tasks if (score := results.score(method, task))]
        if len(scores) == len(results.tasks):
            averages[method] = fmean(central(score, statistic) for score in scores)
    return averages


def _column(centres: dict[str, float], comparisons: list[MethodComparison]) -> ColumnRanking:
    """Finds the best of the tested methods, and the methods that differ from it.

    Args:
        centres: The mean or median of each method, higher is better.
        comparisons: The comparisons of all pairs of methods, corrected for all of them.
    """
    # Tests of single runs say nothing about methods.
    about_methods = [
        comparison for comparison in comparisons if comparison.difference and comparison.difference.test != "rows"
    ]
    pairs = {
        frozenset((comparison.method, comparison.reference)): comparison
        for comparison in about_methods
        if comparison.p is not None
    }
    among = set().union(*pairs)
    # In the order of the table, so that the first of equally good methods counts as the best.
    tested = [method for method in centres if method in among]
    if not tested:
        return ColumnRanking(untested=tuple(centres) if len(centres) > 1 else ())
    best = max(tested, key=lambda method: centres[method])
    with_best = {method: pairs[pair] for method in centres if (pair := frozenset((method, best))) in pairs}
    against = {method: comparison.p for method, comparison in with_best.items() if comparison.p is not None}
    equal = {method for method in tested if centres[method] == centres[best]}
    # Where methods have other seeds in common than they have in all, the best mean can be the worse of a test.
    bold = equal | {method for method, comparison in with_best.items() if not _is_worse(method, comparison)}
    untested = tuple(method for method in centres if method != best and method not in against)
    return ColumnRanking(frozenset(bold), against, untested)


def _is_worse(method: str, comparison: MethodComparison) -> bool:
    """Whether a test shows that this method of the two is the worse one."""
    return comparison.verdict == ("worse" if method == comparison.method else "better")


def compare_methods(differences: Differences, reference: str | None = None) -> list[MethodComparison]:
    """Compares the methods of a results table, task by task, and over data sets where it has several tasks.

    Args:
        differences: The results table with the differences of its methods.
        reference: The method to compare all others with; p values are then corrected for these comparisons. None
            compares every pair, the method with the lower mean with the one with the higher, and corrects for all.

    Returns:
        One comparison per pair of methods and task, and one per pair over the data sets.
    """
    results = differences.results
    comparisons: list[MethodComparison] = []
    for task in results.tasks:
        methods = [method for method in results.methods if results.score(method, task)]
        comparisons += _compare_on_task(differences, task, _pairs(methods, reference))
    if differences.are_averaged:
        methods = [method for method in results.methods if results.groups_of(method)]
        comparisons += _compare_over_data_sets(differences, _pairs(methods, reference))
    return comparisons if reference else [_lower_first(comparison) for comparison in comparisons]


def _pairs(methods: list[str], reference: str | None) -> Iterable[Pair]:
    if reference is None:
        return combinations(methods, 2)
    return [(method, reference) for method in methods if method != reference] if reference in methods else []


def _lower_first(comparison: MethodComparison) -> MethodComparison:
    if comparison.difference is None or comparison.difference.mean <= 0:
        return comparison
    return replace(
        comparison, method=comparison.reference, reference=comparison.method, difference=comparison.difference.turned()
    )


def _compare_on_task(differences: Differences, task: str, pairs: Iterable[Pair]) -> list[MethodComparison]:
    """Compares pairs on one task; their p values are corrected jointly by Holm's method."""
    by_pair = {pair: differences.on_task(task, *pair) for pair in pairs}
    tested = {
        pair: difference.p
        for pair, difference in by_pair.items()
        if difference is not None and difference.p is not None
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    results = differences.results
    return [
        MethodComparison(
            results.title,
            task,
            (task,),
            *pair,
            results.in_percent(task),
            difference,
            corrected.get(pair),
            len(corrected),
        )
        for pair, difference in by_pair.items()
    ]


def _compare_over_data_sets(differences: Differences, pairs: Iterable[Pair]) -> list[MethodComparison]:
    """Compares pairs over the data sets that both finished, all of them in one test."""
    pairs = list(pairs)
    by_pair, corrected = differences.over_data_sets(pairs)
    results = differences.results
    finished = {method: results.groups_of(method).keys() for pair in pairs for method in pair}
    return [
        MethodComparison(
            results.title,
            None,
            tuple(task for task in results.tasks if task in finished[pair[0]] and task in finished[pair[1]]),
            *pair,
            True,
            by_pair.get(pair),
            corrected.get(pair),
            len(corrected),
        )
        for pair in pairs
    ]
