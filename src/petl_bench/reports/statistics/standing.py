"""How the methods of a sheet stand: the best of each column and what cannot be told from it, averages, ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from petl_bench.reports.statistics.paired import (
    SIGNIFICANCE,
    Block,
    PairedDifference,
    average_ranks,
    holm,
    paired_difference,
)
from petl_bench.reports.statistics.sheets import Sheet
from petl_bench.reports.statistics.summary import Statistic

STATISTICS = ("mean", "median")


@dataclass(frozen=True)
class ColumnStanding:
    """The methods of one column against its best.

    Attributes:
        bold: The best, and what a test does not tell from it; the best alone where no test could.
        p: By method, of the paired test against the best, after Holm over the methods of the column.
        pairs: How many pairs the comparisons had, without repetition, in order.
        too_few: Whether so few pairs cannot tell any two methods apart.
    """

    bold: frozenset[str] = frozenset()
    p: dict[str, float] = field(default_factory=dict)
    pairs: tuple[int, ...] = ()
    too_few: bool = False


@dataclass(frozen=True)
class Standing:
    """Every column of a sheet.

    Attributes:
        tasks: By task.
        averages: By method with a score on every task, the mean over tasks.
        average: The column of averages.
        ranks: By method with any score, the mean rank over `blocks` (task, seed) that all of these finished.
    """

    tasks: dict[str, ColumnStanding]
    averages: dict[str, float]
    average: ColumnStanding
    ranks: dict[str, float]
    blocks: int


def central(statistic: Statistic, name: str) -> float:
    """The mean or the median."""
    return statistic.median if name == "median" else statistic.mean


def standing(sheet: Sheet, statistic: str = "mean") -> Standing:
    """Works out who is best where.

    Args:
        sheet: The methods and tasks.
        statistic: `mean` or `median`: by which the best is the best. Tests are on mean differences of pairs.
    """
    scores = {method: found for method in sheet.methods if (found := sheet.scores(method))}
    tasks = {task: _task_standing(sheet, task, scores, statistic) for task in sheet.tasks}
    averages = _averages(sheet, statistic)
    average = _column(averages, {method: scores[method] for method in averages})
    ranks, blocks = average_ranks(scores)
    return Standing(tasks, averages, average, ranks, blocks)


def _task_standing(
    sheet: Sheet, task: str, scores: Mapping[str, Mapping[tuple[str, int], float]], statistic: str
) -> ColumnStanding:
    sign = 1 if sheet.in_percent(task) else -1
    centres, by_seed = {}, {}
    for method in scores:
        score = sheet.score(method, task)
        if score is not None:
            centres[method] = sign * central(score, statistic)
            by_seed[method] = {block: value for block, value in scores[method].items() if block[0] == task}
    return _column(centres, by_seed)


def _averages(sheet: Sheet, statistic: str) -> dict[str, float]:
    """Of tasks with different units there is no average."""
    if len(sheet.tasks) < 2 or not sheet.all_in_percent:
        return {}
    averages = {}
    for method in sheet.methods:
        scores = [score for task in sheet.tasks if (score := sheet.score(method, task))]
        if len(scores) == len(sheet.tasks):
            averages[method] = fmean(central(score, statistic) for score in scores)
    return averages


def _column(centres: Mapping[str, float], scores: Mapping[str, Mapping[Block, float]]) -> ColumnStanding:
    """Tests every method of a column against its best; of one method there is nothing to say."""
    if len(centres) < 2:
        return ColumnStanding()
    best = max(centres, key=lambda method: centres[method])
    equal = {method for method in centres if centres[method] == centres[best]}
    differences: dict[str, PairedDifference] = {}
    for method in centres:
        difference = None if method == best else paired_difference(scores[best], scores[method])
        if difference is not None:
            differences[method] = difference
    adjusted = dict(zip(differences, holm([found.p for found in differences.values()]), strict=True))
    too_few = min(holm([found.least_p for found in differences.values()]), default=1.0) >= SIGNIFICANCE
    alike = set() if too_few else {method for method, p in adjusted.items() if p >= SIGNIFICANCE}
    pairs = sorted({found.n for found in differences.values()})
    return ColumnStanding(frozenset(equal | alike), adjusted, tuple(pairs), too_few)
