"""The picture of `petl-bench plan`: peak memory by kind, a bar a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petl_bench.reports.file_formats import check_picture
from petl_bench.reports.tables.cost_table import KINDS, cost_table


def draw_ledgers(rows: list[dict[str, Any]], file: Path) -> None:
    """Writes a picture of the peak by kind, a bar a method.

    Raises:
        RequestError: for a file format that is not drawn.
    """
    check_picture(file)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counted = sorted((row for row in rows if row["params"]), key=_peak)
    figure, axes = plt.subplots(figsize=(9.0, 1.3 + 0.36 * len(counted)), layout="constrained")
    left = [0.0] * len(counted)
    names = [row["label"] for row in counted]
    for number, kind in enumerate(KINDS):
        sizes = [row["memory"]["ledger"]["at_peak"][f"{kind}_bytes"] / 2**30 for row in counted]
        axes.barh(names, sizes, left=left, label=kind, color=f"C{number}")
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for position, (row, end) in enumerate(zip(counted, left, strict=True)):
        reduction = row["peak_reduction"]
        below = f", {reduction:.1f}x below full" if reduction is not None and reduction > 1 else ""
        axes.text(end, position, f" {end:.2f} GiB{below}", va="center", fontsize=8)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_xlabel("GiB held at the peak of one update")
    axes.set_title(cost_table(rows).title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=len(KINDS), loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _peak(row: dict[str, Any]) -> int:
    peak: int = row["memory"]["ledger"]["peak_bytes"]
    return peak
