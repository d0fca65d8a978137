"""Plots of costs: scores against costs, and the peak memory that `petl-bench plan` estimates, by kind."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.reports.fields import AXES, FIELDS, Field
from petl_bench.reports.groups import Group
from petl_bench.reports.machines import Machine, machines_of
from petl_bench.reports.plots import draw_legend, name_points, pareto_front, score_name, score_scale, series_style
from petl_bench.reports.render import check_picture
from petl_bench.reports.tables import KINDS, cost_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Characters that fit below a panel, and in an inch of the headline.
_LABEL_WIDTH = 40
_CHARACTERS_PER_INCH = 12

# Panels with more points than this have a legend instead of a name beside each point.
_MOST_NAMES = 16

# The first of these that every group has is drawn.
_MEMORY = ("device_peak_bytes", "estimated_peak_bytes", "process_peak_rss_bytes")


def draw_scores(groups: list[Group], file: Path, headline: str | None = None) -> None:
    """Draws scores against costs with their Pareto fronts: a row per task and backbone, a column per cost.

    Times, device memory and speed are those of one machine, the one with the most records; where there are several, the
    axes name it.

    Args:
        groups: The points, one each.
        file: The picture.
        headline: A sentence to stand above the panels.

    Raises:
        RequestError: If the ending names a format that is not drawn.
    """
    check_picture(file)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((group.task, group.backbone) for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    machines = machines_of(one for group in groups for one in group.measured_costs)
    costs = _costs(groups, machines[0])
    figure, grid = plt.subplots(
        len(panels),
        len(costs),
        figsize=(1.2 + 3.6 * len(costs), 0.8 + 3.1 * len(panels)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    by_panel = {panel: [one for one in groups if (one.task, one.backbone) == panel] for panel in panels}
    points = []
    for ((task, backbone), mine), row in zip(by_panel.items(), grid, strict=True):
        for axes, cost in zip(row, costs, strict=True):
            where = machines[0].name if cost.depends_on_machine and len(machines) > 1 else ""
            axes.set_xlabel("\n".join([cost.axis_label, *textwrap.wrap(where, _LABEL_WIDTH)]))
            points.append((axes, _panel(axes, mine, cost, machines[0], labels)))
        row[0].set_ylabel(score_name(mine[0]))
        row[0].set_title(f"{task}, {backbone}", loc="left", fontsize=10)
    if headline is not None:
        width = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
        figure.suptitle("\n".join(textwrap.wrap(headline, width)), x=0.01, ha="left", fontsize=11)
    if max(map(len, by_panel.values())) <= _MOST_NAMES:
        for axes, named in points:
            name_points(axes, named)
    else:
        draw_legend(figure, list(grid[:, 0]))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _costs(groups: list[Group], machine: Machine) -> list[Field]:
    """The costs to draw, at most one of them a memory."""
    memory = next((key for key in _MEMORY if all(group.statistic(FIELDS[key], machine) for group in groups)), None)
    costs = [FIELDS[key] for key in AXES if key == memory or FIELDS[key].kind != "memory"]
    return [cost for cost in costs if any(group.statistic(cost, machine) for group in groups)]


def _panel(
    axes: Axes, groups: list[Group], cost: Field, machine: Machine, labels: list[str]
) -> dict[str, tuple[float, float]]:
    """Draws the points of one panel with their front; returns their places by the names of the methods."""
    points: dict[str, tuple[float, float]] = {}
    for group in groups:
        measured, score = group.statistic(cost, machine), group.score()
        if measured is None or score is None:
            continue
        x = measured.mean / cost.unit
        scale = score_scale(group)
        points[group.label] = (x, scale * score.mean)
        axes.errorbar(
            x,
            scale * score.mean,
            yerr=scale * score.sd if score.sd else None,
            linestyle="none",
            markersize=8,
            capsize=3,
            label=group.label,
            **series_style(labels.index(group.label)),
        )
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set_xticks([])
        return points
    _draw_front(axes, list(points.values()), cost, higher_is_better=groups[0].in_percent)
    if cost.log_axis:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15, y=0.15)
    return points


def _draw_front(axes: Axes, points: list[tuple[float, float]], cost: Field, *, higher_is_better: bool) -> None:
    directions = (-1 if cost.higher_is_better else 1, 1 if higher_is_better else -1)
    front = pareto_front([(directions[0] * x, directions[1] * y) for x, y in points])
    xs, ys = [points[index][0] for index in front], [points[index][1] for index in front]
    axes.plot(xs, ys, drawstyle="steps-post", color="0.5", linewidth=1, linestyle="--", zorder=0)


def draw_memory(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws the estimated peak memory by kind, a bar per method.

    Raises:
        RequestError: If the ending names a format that is not drawn.
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
        sizes = [row["memory"]["estimate"]["at_peak"][f"{kind}_bytes"] / 2**30 for row in counted]
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
    peak: int = row["memory"]["estimate"]["peak_bytes"]
    return peak
