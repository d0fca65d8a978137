"""Plots of curves: the score by update and by number of training rows, the variability by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from petl_bench.reports.groups import Group, NamedGroup
from petl_bench.reports.plots import Panels, score_name
from petl_bench.reports.significance import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation step: the primary metric over the seeds that reached it."""

    step: int
    epoch: float
    score: Statistic


def learning_curve(group: Group) -> list[CurvePoint]:
    """Computes mean and spread over the seeds at every step that was evaluated."""
    by_step: dict[int, list[float | None]] = defaultdict(list)
    epochs: dict[int, float] = {}
    for record in group.records:
        for entry in record.history:
            by_step[entry.step].append(entry.scores.get(group.metric))
            epochs[entry.step] = entry.epoch
    described = ((step, Statistic.of(by_step[step])) for step in sorted(by_step))
    return [CurvePoint(step, epochs[step], score) for step, score in described if score is not None]


def draw_learning_curves(groups: list[Group], file: Path) -> None:
    """Draws learning curves: a panel per task and backbone, a line per method, a band of one sd over the seeds.

    Raises:
        RequestError: If no record has a history, or the ending names a format that is not drawn.
    """
    curves = {id(group): learning_curve(group) for group in groups}
    shown = [group for group in groups if curves[id(group)]]

    def draw(axes: Axes, group: Group, panels: Panels) -> None:
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

    A study may give each number of rows a task name of its own; the data set is the config's task.
    """
    found: dict[tuple[str, str, str], list[NamedGroup]] = defaultdict(list)
    for item in named:
        found[(item.group.first.config["task"]["name"], item.group.backbone, item.method)].append(item)
    return [
        RowsCurve(method, task, backbone, sorted(items, key=lambda item: item.rows))
        for (task, backbone, method), items in found.items()
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
        One value per layer, None for a layer that is infinite for a seed; an empty list if nothing was computed.
    """
    layers = [record.layers for record in group.records if record.layers is not None]
    found = [item.variability_shuffled if shuffled else item.variability for item in layers]
    known = [values for values in found if values is not None]
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
        style = panels.style(group.label)
        values, shuffled = layer_variability(group), layer_variability(group, shuffled=True)
        axes.plot(range(1, len(values) + 1), _numbers(values), label=group.label, markersize=6, **style)
        if shuffled:
            faint = {**style, "marker": ""}
            axes.plot(range(1, len(shuffled) + 1), _numbers(shuffled), linestyle="--", alpha=0.7, **faint)
        assert group.first.layers
        axes.axvspan(group.first.layers.bottom - 0.5, group.first.layers.top + 0.5, color=style["color"], alpha=0.08)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    panels = Panels(shown, file, nothing="no run here chose its layers by their variability (layers=variability)")
    panels.draw(draw, x_label="layer (shaded: adapted; dashed: shuffled labels)", y_label=lambda _: r"$\nu$")


def _numbers(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
