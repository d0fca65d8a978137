"""Ranks the methods: the best of each column with significance tests, and comparisons with a reference method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from petl_bench.errors import RequestError
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.significance import (
    SIGNIFICANCE,
    Block,
    PairedDifference,
    Statistic,
    average_ranks,
    holm,
    paired_difference,
)


@dataclass(frozen=True)
class ColumnRanking:
    """The methods of one column against its best.

    Attributes:
        bold: The best method and all that do not differ significantly from it; the best alone if `too_few`.
        p: By method, the p value of the paired test against the best, after Holm over the methods of the column.
        pairs: The numbers of pairs that the tests had, ascending, without repetition.
        too_few: Whether no test with so few pairs could be significant.
    """

    bold: frozenset[str] = frozenset()
    p: dict[str, float] = field(default_factory=dict)
    pairs: tuple[int, ...] = ()
    too_few: bool = False


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


def central(statistic: Statistic, name: str) -> float:
    """Selects the mean or the median of a statistic by name."""
    return statistic.median if name == "median" else statistic.mean


def rank_methods(results: ResultsTable, statistic: str = "mean") -> Ranking:
    """Ranks the methods of a results table on every task and on average.

    Args:
        results: The methods and tasks.
        statistic: `mean` or `median`, which selects the best. Tests always use mean differences of pairs.
    """
    scores = {method: found for method in results.methods if (found := results.scores(method))}
    tasks = {task: _task_ranking(results, task, scores, statistic) for task in results.tasks}
    averages = _averages(results, statistic)
    average = _column(averages, {method: scores[method] for method in averages})
    ranks, blocks = average_ranks(scores)
    return Ranking(tasks, averages, average, ranks, blocks)


def _task_ranking(
    results: ResultsTable, task: str, scores: Mapping[str, Mapping[tuple[str, int], float]], statistic: str
) -> ColumnRanking:
    sign = 1 if results.in_percent(task) else -1
    centres, by_seed = {}, {}
    for method in scores:
        score = results.score(method, task)
        if score is not None:
            centres[method] = sign * central(score, statistic)
            by_seed[method] = {block: value for block, value in scores[method].items() if block[0] == task}
    return _column(centres, by_seed)


def _averages(results: ResultsTable, statistic: str) -> dict[str, float]:
    """Averages over all tasks by method; empty if the tasks differ in their unit."""
    if len(results.tasks) < 2 or not results.all_in_percent:
        return {}
    averages = {}
    for method in results.methods:
        scores = [score for task in results.tasks if (score := results.score(method, task))]
        if len(scores) == len(results.tasks):
            averages[method] = fmean(central(score, statistic) for score in scores)
    return averages


def _column(centres: Mapping[str, float], scores: Mapping[str, Mapping[Block, float]]) -> ColumnRanking:
    """Tests every method of a column against its best.

    Args:
        centres: The mean or median of each method, higher is better.
        scores: Scores by method and pair, higher is better.
    """
    if len(centres) < 2:
        return ColumnRanking()
    best = max(centres, key=lambda method: centres[method])
    equal = {method for method in centres if centres[method] == centres[best]}
    differences: dict[str, PairedDifference] = {}
    for method in centres:
        difference = None if method == best else paired_difference(scores[best], scores[method])
        if difference is not None:
            differences[method] = difference
    adjusted = dict(zip(differences, holm([found.p for found in differences.values()]), strict=True))
    too_few = min(holm([found.least_p for found in differences.values()]), default=1.0) >= SIGNIFICANCE
    not_different = set() if too_few else {method for method, p in adjusted.items() if p >= SIGNIFICANCE}
    pairs = sorted({found.n for found in differences.values()})
    return ColumnRanking(frozenset(equal | not_different), adjusted, tuple(pairs), too_few)


@dataclass(frozen=True)
class Comparison:
    """One method against the reference.

    Attributes:
        results: The title of the results table that holds both.
        points: Whether scores are percentages, so that differences are points.
        difference: None if the two share no pair.
        p: The p value after Holm over all comparisons of the report.
        least_p: The smallest value that `p` could have with so many pairs.
    """

    results: str
    method: str
    reference: str
    points: bool
    difference: PairedDifference | None
    p: float | None = None
    least_p: float | None = None

    @property
    def name(self) -> str:
        """The method minus the reference."""
        return f"{self.method} − {self.reference}"

    @property
    def too_few(self) -> bool:
        """Whether no difference over so few pairs could be significant."""
        return self.least_p is None or self.least_p >= SIGNIFICANCE

    def show(self, difference: float, *, sign: bool = False) -> str:
        """Formats a difference, in points if scores are percentages."""
        value, digits = (100 * difference, 1) if self.points else (difference, 4)
        return (f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}").replace("-", "−")

    def sentence(self) -> str:
        """The comparison as a sentence with its numbers."""
        found = self.difference
        if found is None or self.p is None or self.least_p is None:
            return f"{self.name}: no (task, seed) that both finished"
        size = f"{self.show(found.mean, sign=True)}{' points' if self.points else ''}"
        if found.interval:
            size += f" [{self.show(found.interval[0])}, {self.show(found.interval[1])}]"
        return f"{self.name}: {size}, n = {found.n}: {self._verdict(found, self.p, self.least_p)}"

    def _verdict(self, found: PairedDifference, p: float, least_p: float) -> str:
        if self.too_few:
            least = f"the least p that the test can give is {show_p(found.least_p)}, {show_p(least_p)} after Holm"
            return f"n is too small to show anything ({least})"
        if p >= SIGNIFICANCE:
            return f"no difference shown (p = {show_p(p)} after Holm)"
        return f"{self.method} is {'better' if found.mean > 0 else 'worse'} (p = {show_p(p)} after Holm)"


def show_p(p: float) -> str:
    """Formats a p value with two significant digits."""
    return f"{p:.4f}".rstrip("0") if 0.0001 <= p < 0.01 else f"{p:.2g}"


def compare(all_results: Sequence[ResultsTable], reference: str | None = None) -> list[Comparison]:
    """Compares all methods of each results table with one of its methods, with Holm's correction over all tables.

    Args:
        all_results: The results tables of the report.
        reference: The method to compare with. None takes the best average of each table that has more than one
            method, and either more than one seed or a study.

    Raises:
        RequestError: If no table has a finished run of the named method.
    """
    labels = dict.fromkeys(group.label for results in all_results for group in results.groups())
    if reference is not None and reference not in labels:
        raise RequestError(
            f"--compare {reference}: no finished run of it here; there are {', '.join(labels) or 'none'}."
        )
    found: list[Comparison] = []
    for results in all_results:
        against = _best(results) if reference is None else reference
        if against in results.methods and results.groups_of(against):
            found += _compare_with(results, against)
    return _corrected(found)


def _compare_with(results: ResultsTable, reference: str) -> list[Comparison]:
    theirs = results.scores(reference)
    others = [method for method in results.methods if method != reference and results.groups_of(method)]
    return [
        Comparison(
            results.title, method, reference, results.all_in_percent, paired_difference(results.scores(method), theirs)
        )
        for method in others
    ]


def _best(results: ResultsTable) -> str | None:
    """Finds the method with the best mean over tasks among those that have the most tasks."""
    scores = {method: results.scores(method) for method in results.methods if results.groups_of(method)}
    seeds = {seed for blocks in scores.values() for _, seed in blocks}
    if len(scores) < 2 or (len(seeds) < 2 and results.study is None):
        return None
    return max(scores, key=lambda method: _tasks_and_mean(scores[method]))


def _tasks_and_mean(scores: dict[tuple[str, int], float]) -> tuple[int, float]:
    tasks: dict[str, list[float]] = {}
    for (task, _), score in scores.items():
        tasks.setdefault(task, []).append(score)
    return len(tasks), fmean(fmean(values) for values in tasks.values()) if tasks else float("-inf")


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    """Fills in the p values after Holm and the smallest values that they could have."""
    tested = [one.difference for one in comparisons if one.difference is not None]
    ps = iter(holm([difference.p for difference in tested]))
    least = iter(holm([difference.least_p for difference in tested]))
    return [one if one.difference is None else replace(one, p=next(ps), least_p=next(least)) for one in comparisons]
