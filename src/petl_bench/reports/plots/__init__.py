"""Shared parts of the plots: markers, names next to points, the legend, the grid of panels, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.errors import RequestError
from petl_bench.reports.groups import Group
from petl_bench.reports.render import check_picture
from petl_bench.reports.significance import LEAST_VALUES, Statistic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox, BboxBase


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points that no other point dominates: none is at least as good in both numbers and better in one.

    Args:
        points: Pairs (cost, score); a lower cost and a higher score are better.

    Returns:
        Their indices, cheapest first.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


# Distinguishable for colour-blind readers. With 7 colours and 8 markers, 56 methods differ in at least one of them.
_COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b8478a", "#a86f00", "#3f9fdb", "#4a4f57")

_MARKERS = "os^DvP*X"

_DASHES = ("-", "--", "-.", ":")

_MOST_COLUMNS = 3

_LEGEND_LINE = 0.21

# Sizes of markers and names in points, and the candidate positions of a name, best first.
_MARKER = 9
_NAME_SIZE = 8
_NAME_DISTANCES = (6, 14, 22, 32, 44, 58, 74)
_NAME_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200)


def series_style(index: int) -> dict[str, Any]:
    """The colour and marker of the method with this number."""
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}


def line_style(index: int) -> dict[str, Any]:
    """The same with a dash for lines, which differs between methods of one colour."""
    return series_style(index) | {"linestyle": _DASHES[index // len(_COLOURS) % len(_DASHES)]}


def score_scale(group: Group) -> int:
    """The factor between a score and the number shown."""
    return 100 if group.in_percent else 1


def score_name(group: Group) -> str:
    """The primary metric with its unit."""
    return f"{group.metric.replace('_', ' ')}{', %' if group.in_percent else ''}"


def draw_legend(figure: Figure, panels: list[Axes]) -> None:
    """Draws one legend below the figure, each name once, in as many columns as fit."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    columns = _legend_columns(list(handles), figure.get_figwidth())
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes the name of each point next to it, without covering a marker or another name.

    If there is no room close to a point, a line connects the point with its name.

    Args:
        axes: The panel, with its points drawn and its limits set.
        points: Positions in data coordinates, by name.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # A white outline separates the letters from lines behind them.
    style: dict[str, Any] = {"fontsize": _NAME_SIZE, "path_effects": [withStroke(linewidth=2.5, foreground="white")]}
    # The pixel positions of the points are only known after layout.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixels = figure.dpi / 72
    places = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [_box(place, np.full(2, _MARKER * pixels), 0, 0) for place in places.values()]
    for name, place in sorted(places.items(), key=lambda item: tuple(item[1][::-1])):
        text = axes.annotate(name, points[name], (0, 0), textcoords="offset points", va="bottom", **style)
        size = np.array(text.get_window_extent().size)
        around = product(_NAME_DISTANCES, _NAME_ANGLES)
        spots = [(distance, _box(place, size, distance * pixels, angle)) for distance, angle in around]
        free = (spot for spot in spots if not spot[1].count_overlaps(taken) and _is_within(spot[1], axes.bbox))
        distance, box = next(free, spots[0])
        taken.append(box)
        text.set_position(tuple((box.min - place) / pixels))
        if distance > _NAME_DISTANCES[0]:
            ends = axes.transData.inverted().transform([place, np.clip(place, box.min, box.max)])
            axes.plot(*ends.T, color="0.6", linewidth=0.6, zorder=0.5, scalex=False, scaley=False)


def _box(place: NDArray[Any], size: NDArray[Any], distance: float, angle: float) -> Bbox:
    """A box whose nearest side or corner has this distance and direction from a place; centred on it if 0."""
    from matplotlib.transforms import Bbox

    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    # The nearest side of a box to the right is its left side; of a box above, its lower side.
    nearest = (np.round(direction) - 1) / 2 if distance else -0.5
    return Bbox.from_bounds(*(place + distance * direction + nearest * size), *size)


def _is_within(box: Bbox, panel: BboxBase) -> bool:
    return bool(np.all(box.min >= panel.min) and np.all(box.max <= panel.max))


def _legend_columns(names: list[str], width: float) -> int:
    # The width in inches of the longest name with its marker, at this font size.
    longest = 0.5 + 0.075 * max(map(len, names))
    return max(1, min(len(names), int(width / longest)))


class Panels:
    """A grid of panels, one per task and backbone, with one line per group.

    Raises:
        RequestError: If there is nothing to draw, or the file extension is not a supported format.
    """

    def __init__(self, groups: list[Group], file: Path, *, nothing: str) -> None:
        check_picture(file)
        if not groups:
            raise RequestError(f"--plot {file}: {nothing}; choose another --plot-kind.")
        self._groups = groups
        self._file = file
        self._labels = list(dict.fromkeys(group.label for group in groups))

    def style(self, label: str) -> dict[str, Any]:
        """The colour and marker of a method, which are the same in all panels."""
        return line_style(self._labels.index(label))

    @staticmethod
    def line(axes: Axes, xs: list[int], scores: list[Statistic], group: Group, **style: Any) -> None:
        """Draws a line of means, with a band of one sd if there are three seeds or more.

        Args:
            axes: The panel.
            xs: One x per score.
            scores: Statistics over the seeds.
            group: Gives the label and the unit of the scores.
            style: Further options of matplotlib's `plot`.
        """
        scale = score_scale(group)
        means = [scale * score.mean for score in scores]
        spread = [scale * (score.sd or 0) if score.n >= LEAST_VALUES else 0 for score in scores]
        axes.plot(xs, means, label=group.label, markersize=5, linewidth=1.5, **style)
        low = [mean - sd for mean, sd in zip(means, spread, strict=True)]
        high = [mean + sd for mean, sd in zip(means, spread, strict=True)]
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.12, linewidth=0)

    def draw(
        self, draw: Callable[[Axes, Group, Panels], None], *, x_label: str, y_label: Callable[[Group], str]
    ) -> None:
        """Draws every group into its panel and writes the file.

        Args:
            draw: Draws one group into its axes.
            x_label: The name of the x axis.
            y_label: Gives the name of the y axis by the first group of a panel.
        """
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        panels = list(dict.fromkeys((group.task, group.backbone) for group in self._groups))
        columns = min(_MOST_COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        width = 1.6 + 4.2 * columns
        lines = -(-len(self._labels) // _legend_columns(self._labels, width))
        size = (width, 0.6 + 3.1 * rows + _LEGEND_LINE * lines)
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for (task, backbone), axes in zip(panels, grid.flat, strict=False):
            groups = [group for group in self._groups if (group.task, group.backbone) == (task, backbone)]
            for group in groups:
                draw(axes, group, self)
            axes.set_title(f"{task}, {backbone}", loc="left", fontsize=10)
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label(groups[0]))
            axes.grid(alpha=0.3)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        draw_legend(figure, list(grid.flat[: len(panels)]))
        figure.savefig(self._file, dpi=150)
        plt.close(figure)
