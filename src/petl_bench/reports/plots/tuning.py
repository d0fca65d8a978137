"""Tuning curves: the score on the reported rows of the best of n trials on the selection rows, by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl_bench.errors import RequestError
from petl_bench.records.schema import Record
from petl_bench.records.study_file import StudyFile, selection_score
from petl_bench.reports.groups import is_comparable
from petl_bench.reports.plots import draw_legend, line_style
from petl_bench.reports.render import check_picture

# The confidence of a curve's band, simultaneous over all numbers of trials.
CONFIDENCE = 0.8

_MOST_COLUMNS = 3


@dataclass(frozen=True)
class TuningCurve:
    """One method on one task.

    Attributes:
        metric: The primary metric; errors are negated, so that higher is better.
        scale: 100 where scores are shown in percent.
        scores: The median for n = 1, 2, ... trials, shape (trials,).
        low, high: Its band, of the same shape. Where too few trials give it no upper end, `high` is infinite; where so
            many failed that an error has none, `low` and `scores` are.
    """

    study: str
    method: str
    task: str
    metric: str
    scale: int
    scores: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]

    def to_dict(self) -> dict[str, Any]:
        """The curve in plain containers: points [trials, score, low, high], in percent where scores are shown so.

        What is infinite is None.
        """
        ends = zip(self.scores, self.low, self.high, strict=True)
        points = [
            [n, *(self.scale * float(value) if np.isfinite(value) else None for value in values)]
            for n, values in enumerate(ends, start=1)
        ]
        names = {"study": self.study, "method": self.method, "task": self.task, "metric": self.metric.replace("_", " ")}
        return names | {"percent": self.scale == 100, "points": points}


def tuning_curve(selection: Sequence[float], reported: Sequence[float], lowest: float, highest: float) -> NDArray[Any]:
    """Computes the median score of the best of n random trials, with a band that is simultaneous over all n.

    The trial with the best score on the selection rows is scored on the reported rows. Its reported score is read from
    an isotonic regression, which never falls as the selection score rises. The best trial on the selection rows is then
    also the best on the reported rows, so that opda's bands for the distribution of trials apply.

    Args:
        selection: Scores of the trials on the selection rows; higher is better.
        reported: Their scores on the reported rows.
        lowest: The lowest possible score.
        highest: The highest possible score.

    Returns:
        The median and the lower and upper end of the band, shape (3, trials).

    Raises:
        RequestError: If opda is missing.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = np.sort(IsotonicRegression(y_min=lowest, y_max=highest).fit_transform(selection, reported))
    return np.concatenate([[lowest], fitted, [highest]])[_ranks(len(fitted))]


@cache
def _ranks(trials: int) -> NDArray[Any]:
    """The median and the band as ranks of the trials: 1 is the worst, 0 and `trials` + 1 the ends of the scale.

    Quantiles depend only on the order, so curves with equally many trials share a result that takes opda seconds.
    """
    try:
        from opda.nonparametric import EmpiricalDistribution
    except ImportError as error:
        raise RequestError("Tuning curves need opda: pip install 'petl-bench[search]'.") from error
    bands = EmpiricalDistribution.confidence_bands(
        np.arange(1.0, trials + 1), CONFIDENCE, a=0.0, b=trials + 1.0, generator=np.random.default_rng(0), n_jobs=1
    )
    # The lower band of the distribution function corresponds to the upper band of the scores.
    high, middle, low = (band.quantile_tuning_curve(np.arange(1, trials + 1)) for band in bands)
    return np.stack([middle, low, high]).astype(int)


def tuning_curves(studies: Sequence[tuple[StudyFile, Sequence[Record]]]) -> list[TuningCurve]:
    """Computes the curves of all random searches; only their trials are independent draws.

    Args:
        studies: Each with all records in its folder, trials included.
    """
    curves = []
    for study, records in studies:
        if study.search is None or (study.search.sampler, study.search.pruner) != ("random", "none"):
            continue
        by_key = {record.run_key: record for record in records}
        for task in study.tasks:
            for method in study.methods:
                runs = (run for run in study.runs if run.is_trial and (run.method, run.task) == (method, task))
                trials = [by_key[run.key] for run in runs if run.key in by_key]
                if sum(map(is_comparable, trials)) > 1:
                    curves.append(_curve(study.name, method, task, trials))
    return curves


def _curve(study: str, method: str, task: str, trials: Sequence[Record]) -> TuningCurve:
    """The curve of all trials that ended; one that failed or diverged counts as worse than any other."""
    scored = [trial for trial in trials if is_comparable(trial)]
    protocol = scored[0].protocol
    assert protocol
    sign = 1 if protocol.higher_is_better else -1
    known = [
        (selected, sign * trial.selected_scores[protocol.metric])
        for trial in scored
        if (selected := selection_score(trial)) is not None
    ]
    selection, reported = map(list, zip(*known, strict=True))
    worst = -1.0 if min(reported) < 0 else 0.0
    limits = (worst, 1.0) if protocol.higher_is_better else (2 * min(reported), 0.0)
    failed = sum(trial.status not in ("finished", "interrupted") for trial in trials)
    selection += failed * [min(selection) - 1]
    reported += failed * [limits[0]]
    scores, low, high = tuning_curve(selection, reported, *limits)
    high[high >= limits[1]] = np.inf
    if not protocol.higher_is_better:
        # An error has no upper limit: what reaches the assumed one is unknown.
        scores[scores <= limits[0]] = low[low <= limits[0]] = -np.inf
    scale = 100 if protocol.higher_is_better else 1
    return TuningCurve(study, method, task, protocol.metric, scale, scores, low, high)


def tuning_sentences(curves: Sequence[TuningCurve]) -> list[str]:
    """Says how far apart the methods are with one trial and with all, and how many of them change places.

    Nothing is said about single pairs: the bands are of the draws of trials alone, and no pair is tested.
    """
    sentences = []
    for study, task in dict.fromkeys((curve.study, curve.task) for curve in curves):
        of_task = [curve for curve in curves if (curve.study, curve.task) == (study, task)]
        trials = min(len(curve.scores) for curve in of_task)
        if len(of_task) < 2 or trials < 2:
            continue
        table = np.stack([curve.scale * curve.scores[:trials] for curve in of_task])
        first, last = _spread(table[:, 0]), _spread(table[:, -1])
        pairs = list(combinations(of_task, 2))
        swapped = sum(_change_places(a.scores[:trials], b.scores[:trials]) for a, b in pairs)
        sentences.append(
            f"{task}: at one random trial the medians of the methods lie {first:.1f} points apart, at the best of "
            f"{trials} trials {last:.1f}; {swapped} of {len(pairs)} pairs of methods change places (not tested)"
        )
    return sentences


def _change_places(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool((a > b).any() and (b > a).any())


def _spread(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) if known.size else 0.0


def draw_tuning(studies: Sequence[tuple[StudyFile, Sequence[Record]]], file: Path) -> list[str]:
    """Draws tuning curves, a panel per task and a line with its band per method.

    Args:
        studies: Each with all records in its folder, trials included.
        file: The picture.

    Returns:
        What the curves say, in words.

    Raises:
        RequestError: If no study has a search by random draws, or the ending names a format that is not drawn.
    """
    check_picture(file)
    curves = tuning_curves(studies)
    if not curves:
        raise RequestError(
            f"--plot {file}: no study here has two finished trials of a search with sampler: random; choose another "
            "--plot-kind."
        )
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys((curve.study, curve.task) for curve in curves))
    methods = list(dict.fromkeys(curve.method for curve in curves))
    rows = -(-len(tasks) // _MOST_COLUMNS)
    columns = -(-len(tasks) // rows)
    size = (1.6 + 4.2 * columns, 1.0 + 3.1 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for (study, task), axes in zip(tasks, grid.flat, strict=False):
        in_panel = [curve for curve in curves if (curve.study, curve.task) == (study, task)]
        for curve in in_panel:
            counts, style = np.arange(1, len(curve.scores) + 1), line_style(methods.index(curve.method))
            axes.plot(counts, curve.scale * curve.scores, label=curve.method, markersize=5, linewidth=1.5, **style)
            low, high = curve.scale * curve.low, curve.scale * curve.high
            axes.fill_between(
                counts, low, high, where=np.isfinite(high - low), color=style["color"], alpha=0.1, linewidth=0
            )
            axes.plot(counts, low, color=style["color"], linewidth=0.6, linestyle=":")
        # With few trials, the bands have no upper end, so the curves and lower ends determine the y limits.
        shown = np.concatenate([curve.scale * np.concatenate([curve.scores, curve.low]) for curve in in_panel])
        shown = shown[np.isfinite(shown)]
        room = 0.15 * max(_spread(shown), 1e-3 * in_panel[0].scale)
        axes.set_ylim(shown.min() - room, shown.max() + room)
        axes.set_title(f"{task}, {study}", loc="left", fontsize=10)
        axes.set_xlabel("trials, of which the best on the selection rows is taken")
        unit = ", %" if in_panel[0].scale == 100 else ", negated"
        axes.set_ylabel(f"{in_panel[0].metric.replace('_', ' ')}{unit}")
        axes.grid(alpha=0.3)
    band = f"median; dotted: lower end of its {100 * CONFIDENCE:.0f} % band, which is shaded where it has an upper end"
    figure.suptitle(band, fontsize=10)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    draw_legend(figure, list(grid.flat[: len(tasks)]))
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return tuning_sentences(curves)
