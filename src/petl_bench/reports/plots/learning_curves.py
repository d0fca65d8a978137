"""Learning curves: the score on the selection split by step, over the seeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from petl_bench.reports.plots.panels import Panels, score_name
from petl_bench.reports.statistics.groups import Group
from petl_bench.reports.statistics.summary import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: the primary metric of the seeds that got there."""

    step: int
    epoch: float
    score: Statistic


def learning_curve(group: Group) -> list[CurvePoint]:
    """Mean and spread over the seeds at every step that was evaluated."""
    by_step: dict[int, list[float | None]] = defaultdict(list)
    epochs: dict[int, float] = {}
    for record in group.records:
        for entry in record.history:
            by_step[entry.step].append(entry.scores.get(group.metric))
            epochs[entry.step] = entry.epoch
    described = ((step, Statistic.of(by_step[step])) for step in sorted(by_step))
    return [CurvePoint(step, epochs[step], score) for step, score in described if score is not None]


def draw_learning_curves(groups: list[Group], file: Path) -> None:
    """Writes the picture: a panel a task and backbone, a line a method, a band of one sd over the seeds.

    Raises:
        RequestError: where no record has a history, or for a file format that is not drawn.
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
