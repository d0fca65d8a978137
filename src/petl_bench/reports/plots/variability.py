"""The variability metric by layer, where a run chose its layers by it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from petl_bench.reports.plots.panels import Panels
from petl_bench.reports.statistics.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def layer_variability(group: Group, *, shuffled: bool = False) -> list[float | None]:
    """The metric of layers 1..L, mean over the seeds; None where a seed has infinity, empty where nothing was computed.

    Args:
        group: Runs of one method.
        shuffled: The metric with shuffled labels instead.
    """
    layers = [record.layers for record in group.records if record.layers is not None]
    found = [item.variability_shuffled if shuffled else item.variability for item in layers]
    known = [values for values in found if values is not None]
    return [_mean(column) for column in zip(*known, strict=False)]


def _mean(column: tuple[float | None, ...]) -> float | None:
    finite = [value for value in column if value is not None]
    return fmean(finite) if len(finite) == len(column) else None


def draw_variability(groups: list[Group], file: Path) -> None:
    """Writes the picture: a panel a task and backbone, a line a method, dashed with shuffled labels.

    Raises:
        RequestError: where no run computed the metric, or for a file format that is not drawn.
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
