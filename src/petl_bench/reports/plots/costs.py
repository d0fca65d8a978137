"""Plots of costs: scores against costs, and the peak memory of `petl-bench plan` by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.reports.groups import Group
from petl_bench.reports.output_files import check_picture
from petl_bench.reports.plots.panels import draw_legend, pareto_front, score_name, score_scale, series_style
from petl_bench.reports.tables import KINDS, cost_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MEMORY = (
    (("memory", "device", "train_peak_allocated_bytes"), "peak device memory, MiB"),
    (("memory", "estimate", "peak_bytes"), "peak memory of an update estimated, MiB"),
    (("memory", "process_peak_rss_bytes"), "peak resident memory of the process, MiB"),
)


@dataclass(frozen=True)
class _Cost:
    """One axis: a number of each group, None where it was not measured."""

    label: str
    of: Callable[[Group], float | None]
    log: bool = False
    less_is_better: bool = True


def draw_scores(groups: list[Group], file: Path) -> None:
    """Writes the picture: a row a task and backbone, a column a cost, with the front of what no other method beats.

    Raises:
        RequestError: for a file format that is not drawn.
    """
    check_picture(file)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((group.task, group.backbone) for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    costs = [cost for cost in _costs(groups) if any(cost.of(group) is not None for group in groups)]
    figure, grid = plt.subplots(
        len(panels),
        len(costs),
        figsize=(1.2 + 3.6 * len(costs), 0.8 + 3.1 * len(panels)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for (task, backbone), row in zip(panels, grid, strict=True):
        mine = [group for group in groups if (group.task, group.backbone) == (task, backbone)]
        for axes, cost in zip(row, costs, strict=True):
            _panel(axes, mine, cost, labels)
        row[0].set_ylabel(score_name(mine[0]))
        row[0].set_title(f"{task}, {backbone}", loc="left", fontsize=10)
    draw_legend(figure, list(grid[:, 0]))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _costs(groups: list[Group]) -> list[_Cost]:
    path, memory = next(
        (path, label) for path, label in _MEMORY if path == _MEMORY[-1][0] or all(g.statistic(*path) for g in groups)
    )
    return [
        _Cost("trained parameters, head included", lambda group: _mean(group, "params", "trainable"), log=True),
        _Cost(memory, lambda group: _scaled(_mean(group, *path), 2**20)),
        _Cost("training time, s", lambda group: _mean(group, "time", "train_seconds")),
        _Cost(
            "inference, examples/s (more is better)",
            lambda group: _mean(group, "inference", "examples_per_second"),
            less_is_better=False,
        ),
    ]


def _mean(group: Group, *path: str) -> float | None:
    statistic = group.statistic(*path)
    return None if statistic is None else statistic.mean


def _scaled(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _panel(axes: Axes, groups: list[Group], cost: _Cost, labels: list[str]) -> None:
    points: list[tuple[float, float]] = []
    for group in groups:
        x, score = cost.of(group), group.score()
        if x is None or score is None:
            continue
        scale = score_scale(group)
        points.append((x, scale * score.mean))
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
    axes.set_xlabel(cost.label)
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set_xticks([])
        return
    _draw_front(axes, points, cost, higher_is_better=groups[0].in_percent)
    if cost.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.margins(x=0.12, y=0.15)


def _draw_front(axes: Axes, points: list[tuple[float, float]], cost: _Cost, *, higher_is_better: bool) -> None:
    directions = (1 if cost.less_is_better else -1, 1 if higher_is_better else -1)
    front = pareto_front([(directions[0] * x, directions[1] * y) for x, y in points])
    xs, ys = [points[index][0] for index in front], [points[index][1] for index in front]
    axes.plot(xs, ys, drawstyle="steps-post", color="0.5", linewidth=1, linestyle="--", zorder=0)


def draw_memory(rows: list[dict[str, Any]], file: Path) -> None:
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
