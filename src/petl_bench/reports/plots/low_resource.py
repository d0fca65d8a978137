"""Low-resource curves: the score by the number of training rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from petl_bench.reports.plots.panels import Panels, score_name
from petl_bench.reports.statistics.groups import Group
from petl_bench.reports.statistics.named_groups import NamedGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    """Writes the picture: a panel a data set and backbone, a line a method, a band of one sd over the seeds.

    Raises:
        RequestError: where no method was trained on several numbers of rows, or for a file format that is not drawn.
    """
    curves = {(curve.task, curve.backbone, curve.method): curve for curve in rows_curves(named)}
    # Each curve goes by its first group, under the name of the method.
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
