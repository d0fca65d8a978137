"""Draws score against trained parameters and against peak memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.reports.groups import Group
from petl_bench.reports.picture import check_picture

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*Xh<>p"


def draw_scores(groups: list[Group], file: Path) -> None:
    """Writes the picture: a row a task and backbone, left by parameters (log), right by peak memory.

    Raises:
        RequestError: for a file format that is not drawn.
    """
    check_picture(file)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((group.task, group.backbone) for group in groups))
    labels = list(dict.fromkeys(group.label for group in groups))
    figure, grid = plt.subplots(
        len(panels), 2, figsize=(10.5, 0.6 + 3.1 * len(panels)), squeeze=False, sharey="row", layout="constrained"
    )
    for (task, backbone), (left, right) in zip(panels, grid, strict=True):
        mine = [group for group in groups if (group.task, group.backbone) == (task, backbone)]
        memory, memory_label = _memory_axis(mine)
        for group in mine:
            style = _style(labels.index(group.label))
            _point(left, group, float(group.first.params.trainable if group.first.params else 0), style)
            if memory.get(group.label) is not None:
                _point(right, group, memory[group.label], style)
        left.set_xscale("log")
        left.set_xlabel("trained parameters, head included")
        left.set_ylabel(f"{task} {mine[0].metric.replace('_', ' ')}{', %' if mine[0].in_percent else ''}")
        left.set_title(f"{task}, {backbone}", loc="left", fontsize=10)
        right.set_xlabel(memory_label)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.margins(x=0.12, y=0.15)
    handles, names = _legend(list(grid[:, 0]))
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _memory_axis(groups: list[Group]) -> tuple[dict[str, float], str]:
    """Peak memory in MiB by label: the device's where every run has it, else the process's."""
    device = {group.label: group.statistic("memory", "device", "train_peak_allocated_bytes") for group in groups}
    if all(device.values()):
        return {label: peak.mean / 2**20 for label, peak in device.items() if peak}, "peak device memory, MiB"
    process = {group.label: group.statistic("memory", "process_peak_rss_bytes") for group in groups}
    return {
        label: peak.mean / 2**20 for label, peak in process.items() if peak
    }, "peak resident memory of the process, MiB"


def _point(axes: Axes, group: Group, x: float, style: dict[str, Any]) -> None:
    score = group.score()
    if score is None:
        return
    scale = 100 if group.in_percent else 1
    axes.errorbar(
        x, scale * score.mean, yerr=scale * score.sd if score.sd else None, linestyle="none", markersize=8, capsize=3,
        label=group.label, **style,
    )  # fmt: skip


def _style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "marker": _MARKERS[index % len(_MARKERS)]}


def _legend(column: list[Axes]) -> tuple[list[Artist], list[str]]:
    found: dict[str, Artist] = {}
    for axes in column:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)
