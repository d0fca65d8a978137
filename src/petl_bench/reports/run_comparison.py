"""The output of `petl-bench compare` for two runs of one task, as text and as JSON.

It describes these two runs only: other seeds of the same methods may differ in another way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from petl_bench.records.schema import finite
from petl_bench.reports.comparison_table import show_p
from petl_bench.reports.fields import MISSING
from petl_bench.reports.render import ReportTable, print_table
from petl_bench.reports.significance import SIGNIFICANCE


@dataclass(frozen=True)
class RunSummary:
    """The description of one of the compared runs; `rows` is the number of rows that it predicted."""

    folder: str
    method: str
    backbone: str
    seed: int
    rows: int


@dataclass(frozen=True)
class Figure:
    """One number of both runs on the shared rows.

    Attributes:
        higher_is_better: False for errors, which are not shown in percent.
        interval: The 95 % interval of `a - b` for other rows, by the jackknife; None where there is none.
    """

    name: str
    a: float
    b: float
    higher_is_better: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class AccuracyTest:
    """McNemar's exact test of whether both runs predict equally many rows correctly."""

    only_a_right: int
    only_b_right: int
    p: float


@dataclass
class RowDifference:
    """A row for which the runs predict different labels or values; word tags and several labels are joined to one text.

    Attributes:
        row: Its position among the rows that run A predicted, from 0.
        right: `A`, `B` or `neither`; None for regression.
        texts: One for each text column; None if the data is not available.
    """

    row: int
    row_id: str
    label: str | float
    a: str | float
    b: str | float
    right: str | None
    texts: list[str] | None = None


@dataclass
class RunComparison:
    """Two runs on the rows that both have predicted.

    Attributes:
        metric: The task's primary metric.
        metrics: The task's metrics.
        calibration: Expected calibration error and Brier score, also after temperature scaling if both runs have it.
        temperatures: Those of run A and run B, fitted on their selection splits; None without temperature scaling.
        agreement_percent: Share of the rows for which the runs predict the same label; None in regression.
        differences: The rows for which they do not, in the order of run A; in regression, the farthest apart first.
    """

    task: str
    split: str
    metric: str
    a: RunSummary
    b: RunSummary
    rows: int
    metrics: list[Figure]
    differences: list[RowDifference]
    calibration: list[Figure] = field(default_factory=list)
    temperatures: tuple[float, float] | None = None
    accuracy_test: AccuracyTest | None = None
    agreement_percent: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Plain containers for JSON, with at most `limit` rows; `num_differences` counts all of them."""
        shown = dataclasses.replace(self, differences=self.differences[:limit])
        content: dict[str, Any] = finite(dataclasses.asdict(shown))
        return content | {"num_differences": len(self.differences)}


def print_comparison(comparison: RunComparison, limit: int, write: Callable[[str], None]) -> None:
    """Prints a comparison for the terminal.

    Args:
        comparison: The comparison.
        limit: The largest number of rows to list.
        write: Prints a line.
    """
    for name, run in (("A", comparison.a), ("B", comparison.b)):
        write(f"{name}: {run.method}, {run.backbone}, seed {run.seed} ({run.folder})")
    print_table(_figures(comparison))
    if comparison.differences[:limit]:
        print_table(_rows(comparison, limit))


def _figures(comparison: RunComparison) -> ReportTable:
    """The table of the metrics, with what the comparison says as its notes."""
    title = f"{comparison.task}, {comparison.split}: {comparison.rows:,} shared rows"
    rows = [_line(figure) for figure in (*comparison.metrics, *comparison.calibration)]
    return ReportTable(title, ["metric", "A", "B", "difference", "interval"], rows, list(_notes(comparison)))


def _line(figure: Figure) -> list[str]:
    scale, digits = (100, 2) if figure.higher_is_better else (1, 4)

    def show(value: float, sign: str = "") -> str:
        return f"{scale * value:{sign}.{digits}f}"

    interval = f"[{show(figure.interval[0], '+')}, {show(figure.interval[1], '+')}]" if figure.interval else MISSING
    return [figure.name, show(figure.a), show(figure.b), show(figure.a - figure.b, "+"), interval]


def _notes(comparison: RunComparison) -> Iterator[str]:
    counts = [run.rows for run in (comparison.a, comparison.b)]
    if max(counts) > comparison.rows:
        yield f"run A has predicted {counts[0]:,} rows, run B {counts[1]:,}: rows of only one of them are left out"
    if comparison.accuracy_test is not None:
        yield _accuracy_sentence(comparison.accuracy_test)
    if comparison.agreement_percent is not None:
        yield f"both runs predict the same label for {comparison.agreement_percent:.2f} % of the rows"
    for figure in comparison.metrics:
        if figure.interval is not None:
            low, high = figure.interval
            shown = "does not contain" if low > 0 or high < 0 else "contains"
            yield f"{figure.name}: the 95 % interval of the difference A - B over rows {shown} 0"
    if comparison.temperatures is not None:
        a, b = comparison.temperatures
        yield f"scaled: logits divided by a temperature, fitted on the selection split: A {a:.2f}, B {b:.2f}"
    yield "tests and intervals are about these two runs on other rows; other seeds may differ in another way"
    yield from comparison.notes


def _accuracy_sentence(test: AccuracyTest) -> str:
    if test.only_a_right == test.only_b_right == 0:
        return "accuracy: both runs have the same rows right"
    sentence = (
        f"accuracy: run A alone has {test.only_a_right:,} rows right and run B alone {test.only_b_right:,}, "
        f"p = {show_p(test.p)} by McNemar's exact test"
    ).replace("= <", "<")
    if test.p >= SIGNIFICANCE:
        return f"{sentence}: no difference between the two runs is shown"
    return f"{sentence}: run {'A' if test.only_a_right > test.only_b_right else 'B'} is better"


def _rows(comparison: RunComparison, limit: int) -> ReportTable:
    """The table of the rows for which the runs predict different labels or values."""
    shown = comparison.differences[:limit]
    is_classification = comparison.agreement_percent is not None
    with_texts = any(difference.texts is not None for difference in shown)
    header = [
        "row",
        "id",
        "label",
        "A",
        "B",
        *(["right"] if is_classification else []),
        *(["text"] if with_texts else []),
    ]
    rows = [
        [
            str(difference.row),
            difference.row_id,
            *(
                value if isinstance(value, str) else f"{value:.4f}"
                for value in (difference.label, difference.a, difference.b)
            ),
            *([difference.right or ""] if is_classification else []),
            *([" | ".join(difference.texts or [])] if with_texts else []),
        ]
        for difference in shown
    ]
    what = "labels" if is_classification else "values, the farthest apart first"
    count = (
        f"{len(shown):,} of {len(comparison.differences):,}"
        if len(shown) < len(comparison.differences)
        else f"{len(shown):,}"
    )
    return ReportTable(f"Rows with different predicted {what}: {count}", header, rows, [], prose=("text",))
