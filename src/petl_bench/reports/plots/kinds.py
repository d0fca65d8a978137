"""The plots: scores against costs, memory by kind, learning curves, scores by number of rows, layer variability."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from petl_bench.records.schema import MEMORY_KINDS
from petl_bench.reports.fields import AXES, FIELDS, Field
from petl_bench.reports.groups import Group, NamedGroup
from petl_bench.reports.machines import Machine, machines_of
from petl_bench.reports.plots import (
    Panels,
    draw_legend,
    name_points,
    pareto_front,
    score_name,
    score_scale,
    series_style,
)
from petl_bench.reports.protocol import batch_text, learning_curve, protocol_numbers
from petl_bench.reports.render import check_picture
from petl_bench.reports.significance import LEAST_VALUES
from petl_bench.reports.tables import cost_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Characters that fit below a panel, and in an inch of the headline.
_LABEL_WIDTH = 40
_CHARACTERS_PER_INCH = 12

# More plots side by side would be illegible at page width.
_MOST_COSTS_BESIDE = 2

# Panels with more points than this have a legend instead of a name next to each point.
_MOST_NAMES = 16

# The plot shows the first of these memory costs that every group has. A device's peak includes features of frozen
# layers where there was room for them, which says nothing about what a method needs.
_MEMORY = ("estimated_peak_bytes", "device_peak_bytes", "process_peak_rss_bytes")


def draw_scores(groups: list[Group], file: Path, headline: str | None = None) -> None:
    """Draws scores against costs with their Pareto fronts: for each task and backbone a plot per cost.

    Times, device memory and speed are those of the machine with the most records; if there are several machines, the
    axes name it.

    Args:
        groups: The groups, each drawn as one point.
        file: The picture.
        headline: A sentence to show above the panels.

    Raises:
        RequestError: If the ending names a format that is not drawn.
    """
    check_picture(file)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((group.task, group.backbone) for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    machines = machines_of(measured for group in groups for measured in group.measured_costs)
    costs = _costs(groups, machines[0])
    columns = min(_MOST_COSTS_BESIDE, len(costs))
    lines = -(-len(costs) // columns)
    figure, grid = plt.subplots(
        len(panels) * lines,
        columns,
        figsize=(1.2 + 3.6 * columns, 0.8 + 3.1 * len(panels) * lines),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    by_panel = {panel: [group for group in groups if (group.task, group.backbone) == panel] for panel in panels}
    points = []
    for number, ((task, backbone), in_panel) in enumerate(by_panel.items()):
        rows = grid[number * lines : (number + 1) * lines]
        for axes, cost in zip(rows.flat, costs, strict=False):
            where = machines[0].name if cost.depends_on_machine and len(machines) > 1 else ""
            name = cost.axis_label + (f", {batch_text(in_panel)}" if cost.depends_on_batch else "")
            axes.set_xlabel("\n".join([*textwrap.wrap(name, _LABEL_WIDTH), *textwrap.wrap(where, _LABEL_WIDTH)]))
            points.append((axes, _panel(axes, in_panel, cost, machines[0], labels)))
        for axes in rows.flat[len(costs) :]:
            axes.set_visible(False)
        for axes in rows[:, 0]:
            axes.set_ylabel(score_name(in_panel[0]))
        rows[0, 0].set_title(f"{task}, {backbone}", loc="left", fontsize=10)
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
    """Draws the points of one panel with their fronts; returns the positions of the points by method name."""
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
            yerr=scale * score.sd if score.sd and score.n >= LEAST_VALUES else None,
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
    # Methods that were trained for longer or on other rows do not share a front with the others.
    by_protocol: dict[int, list[tuple[float, float]]] = {}
    for group, number in zip(groups, protocol_numbers(groups), strict=True):
        if group.label in points:
            by_protocol.setdefault(number, []).append(points[group.label])
    for alike in by_protocol.values():
        _draw_front(axes, alike, cost, higher_is_better=groups[0].in_percent)
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
    for number, kind in enumerate(MEMORY_KINDS):
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
    axes.legend(frameon=False, fontsize=8, ncols=len(MEMORY_KINDS), loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _peak(row: dict[str, Any]) -> int:
    peak: int = row["memory"]["estimate"]["peak_bytes"]
    return peak


def draw_learning_curves(groups: list[Group], file: Path) -> None:
    """Draws learning curves: a panel per task and backbone, a line per method, a band of one sd over the seeds.

    Raises:
        RequestError: If no record has a history, or the ending names a format that is not drawn.
    """
    curves = {id(group): learning_curve(group) for group in groups}
    shown = [group for group in groups if curves[id(group)]]

    def draw(axes: Axes, group: Group, panels: Panels) -> None:
        """One line: the scores of a method's evaluations."""
        points = curves[id(group)]
        style = panels.style(group.label)
        panels.line(
            axes,
            [point.step for point in points],
            [point.score for point in points],
            group,
            markevery=max(1, len(points) // 8),
            **style,
        )

    panels = Panels(shown, file, nothing="no record here has a history of evaluations")
    panels.draw(draw, x_label="updates", y_label=lambda group: f"{_split(group)} {score_name(group)}")


def _split(group: Group) -> str:
    assert group.first.protocol
    return group.first.protocol.selection_split


@dataclass(frozen=True)
class RowsCurve:
    """One method on several numbers of training rows of one data set, fewest first."""

    method: str
    task: str
    backbone: str
    points: list[NamedGroup]


def rows_curves(named: Iterable[NamedGroup]) -> list[RowsCurve]:
    """The methods that were trained on more than one number of rows of a data set.

    A study may use a separate task name for each number of rows; the data set is the config's task.
    """
    by_method: dict[tuple[str, str, str], list[NamedGroup]] = defaultdict(list)
    for item in named:
        by_method[(item.group.first.config["task"]["name"], item.group.backbone, item.method)].append(item)
    return [
        RowsCurve(method, task, backbone, sorted(items, key=lambda item: item.rows))
        for (task, backbone, method), items in by_method.items()
        if len({item.rows for item in items}) > 1
    ]


def draw_low_resource(named: list[NamedGroup], file: Path) -> None:
    """Draws scores by training rows: a panel per data set and backbone, a line per method, a band of one sd over seeds.

    Raises:
        RequestError: If no method was trained on several numbers of rows, or the format is not drawn.
    """
    curves = {(curve.task, curve.backbone, curve.method): curve for curve in rows_curves(named)}
    # Each curve is represented by its first group, under the name of the method.
    heads = [replace(curve.points[0].group, task=curve.task, label=curve.method) for curve in curves.values()]

    def draw(axes: Axes, group: Group, panels: Panels) -> None:
        """One line: a method's score at each number of training rows."""
        points = curves[(group.task, group.backbone, group.label)].points
        scores = [(point.rows, point.group.score()) for point in points]
        known = [(rows, score) for rows, score in scores if score is not None]
        panels.line(
            axes, [rows for rows, _ in known], [score for _, score in known], group, **panels.style(group.label)
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")

    panels = Panels(heads, file, nothing="no method here was trained on several numbers of rows of one task")
    panels.draw(draw, x_label="training rows", y_label=score_name)


def layer_variability(group: Group, *, shuffled: bool = False) -> list[float | None]:
    """Computes the mean variability over the seeds for layers 1..L.

    Args:
        group: Runs of one method.
        shuffled: Whether to take the metric with shuffled labels.

    Returns:
        One value per layer, None for a layer whose value is infinite for a seed; empty if nothing was computed.
    """
    layers = [record.layers for record in group.records if record.layers is not None]
    variabilities = [item.variability_shuffled if shuffled else item.variability for item in layers]
    known = [values for values in variabilities if values is not None]
    return [_mean(column) for column in zip(*known, strict=False)]


def _mean(column: tuple[float | None, ...]) -> float | None:
    finite = [value for value in column if value is not None]
    return fmean(finite) if len(finite) == len(column) else None


def draw_variability(groups: list[Group], file: Path) -> None:
    """Draws the variability by layer: a panel per task and backbone, a line per method, dashed for shuffled labels.

    Raises:
        RequestError: If no run computed the metric, or the ending names a format that is not drawn.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [group for group in groups if layer_variability(group)]

    def draw(axes: Axes, group: Group, panels: Panels) -> None:
        """The variability of each layer, that of shuffled labels dashed, and the adapted layers shaded."""
        style = panels.style(group.label)
        values, shuffled = layer_variability(group), layer_variability(group, shuffled=True)
        axes.plot(range(1, len(values) + 1), _numbers(values), label=group.label, markersize=6, **style)
        if shuffled:
            faint = {**style, "marker": "", "linestyle": "--", "alpha": 0.7}
            axes.plot(range(1, len(shuffled) + 1), _numbers(shuffled), **faint)
        assert group.first.layers
        axes.axvspan(group.first.layers.bottom - 0.5, group.first.layers.top + 0.5, color=style["color"], alpha=0.08)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    panels = Panels(shown, file, nothing="no run here chose its layers by their variability (layers=variability)")
    panels.draw(draw, x_label="layer (shaded: adapted; dashed: shuffled labels)", y_label=lambda _: r"$\nu$")


def _numbers(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
