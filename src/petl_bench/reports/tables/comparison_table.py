"""Method against method, as a table and in words."""

from __future__ import annotations

from petl_bench.reports.statistics.comparisons import Comparison, show_p
from petl_bench.reports.tables.columns import MISSING
from petl_bench.reports.tables.table import ReportTable


def comparison_table(comparisons: list[Comparison]) -> ReportTable:
    """The comparisons of one sheet, and each of them in words."""
    rows = []
    for one in comparisons:
        found = one.difference
        if found is None or one.p is None:
            rows.append([one.name, MISSING, MISSING, "0", MISSING, MISSING])
            continue
        interval = f"[{one.show(found.interval[0])}, {one.show(found.interval[1])}]" if found.interval else MISSING
        difference = one.show(found.mean, sign=True)
        rows.append([one.name, difference, interval, str(found.n), show_p(found.p), show_p(one.p)])
    unit = "points" if comparisons[0].points else "score (errors negated)"
    header = ["comparison", f"difference, {unit}", "95 % CI", "n", "p", "p after Holm"]
    notes = [
        *(one.words() for one in comparisons),
        "difference: mean over the n (task, seed) that both finished; 95 % CI: percentile bootstrap over them",
        "p: two-sided sign-flip test of the pairs; after Holm: corrected for all comparisons of this report",
    ]
    return ReportTable(f"{comparisons[0].sheet}: comparisons", header, rows, notes)
