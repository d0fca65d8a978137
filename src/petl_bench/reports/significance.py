"""Statistics over seeds, rows and data sets: means and intervals, tests, corrections for several tests, ranks.

Nothing here knows records or methods. docs/reports.md defines each number and says how often each test is wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.05

# The power at which a report states how large a difference must be to be found.
POWER = 0.8

# Fewer values have no interval and no t test.
LEAST_VALUES = 3
# Values that differ by less are equal, apart from rounding.
_NO_SPREAD = 1e-12

# No outcome of a sign-flip test over fewer data sets has p < 0.05: 2 / 2^5 = 0.0625.
LEAST_DATA_SETS = 6

# With at most this many data sets, all sign flips are enumerated.
EXACT_FLIPS = 15

_FLIPS = 20_000
_SEED = 0


@lru_cache(maxsize=10_000)
def _stdev(values: tuple[float, ...]) -> float:
    """Cached, because tables, comparisons and ranks describe the same runs and exact fractions are slow."""
    return statistics.stdev(values)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (n - 1) of `n` values; `sd` is None if n is 1."""

    mean: float
    sd: float | None
    n: int
    values: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Describes the finite values; returns None if there are none."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known:
            return None
        sd = _stdev(tuple(known)) if len(known) > 1 else None
        return cls(statistics.fmean(known), sd, len(known), tuple(known))

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The highest value."""
        return max(self.values)

    @property
    def estimate(self) -> Estimate | None:
        """The mean with its standard error; None for fewer than three values, or equal ones other than 0.

        Scores are counts of rows, so a few equal values are a coincidence that a t test would treat as certainty.
        """
        if self.sd is None or self.n < LEAST_VALUES:
            return None
        if self.sd < _NO_SPREAD:
            return Estimate(0.0, 0.0, self.n - 1) if abs(self.mean) < _NO_SPREAD else None
        return Estimate(self.mean, self.sd / math.sqrt(self.n), self.n - 1)

    def interval(self) -> tuple[float, float] | None:
        """The 95 % t interval of the mean; None for fewer than three values, or equal ones other than 0."""
        return self.estimate.interval() if self.estimate else None


@dataclass(frozen=True)
class Estimate:
    """A mean and its uncertainty: the sum of a t(df)-distributed error and a normal error.

    The sum has the distribution of Behrens and Fisher, which keeps the false alarms of its tests at or below their
    level (Robinson, Annals of Statistics 4, 1976), even for tests that are corrected for many comparisons.

    Attributes:
        error: A standard error, estimated from `df + 1` values.
        df: Its degrees of freedom.
        normal_error: Another standard error, known from so many values that its own uncertainty does not matter.
    """

    mean: float
    error: float
    df: int
    normal_error: float = 0.0

    @property
    def p(self) -> float:
        """The two-sided p value of the test against 0; 1 if the mean is 0 without any error."""
        return 2 * self._tail(abs(self.mean))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        half = self._distance(SIGNIFICANCE / 2)
        return self.mean - half, self.mean + half

    def detectable(self, comparisons: int = 1) -> float:
        """The true difference that the test finds with a chance of `POWER`, corrected for several comparisons."""
        return self._distance(SIGNIFICANCE / 2 / comparisons) + self._distance(1 - POWER)

    def _tail(self, distance: float) -> float:
        """The chance that the estimate is above the true mean by this distance or more."""
        from scipy.special import ndtr, stdtr

        if self.error == self.normal_error == 0:
            return 0.5 if distance == 0 else 0.0
        if self.normal_error == 0:
            return float(stdtr(self.df, -distance / self.error))
        scales, weights = _variance_scales(self.df)
        return float(weights @ ndtr(-distance / np.hypot(self.error * scales, self.normal_error)))

    def _distance(self, tail: float) -> float:
        """The inverse of `_tail`."""
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        most = -float(stdtrit(self.df, tail)) * (self.error + self.normal_error)
        if self.normal_error == 0:
            return most
        # Both errors are rarely extreme at the same time, so the distance is smaller.
        return float(brentq(lambda distance: self._tail(distance) - tail, 0.0, most, xtol=1e-9 * most))


@lru_cache(maxsize=64)
def _variance_scales(df: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Splits t(df) into normal distributions: their standard deviations and weights, from one tail to the other."""
    from scipy.special import expit, gammaincinv

    logits = np.linspace(-40.0, 30.0, 400)
    chances = expit(logits)
    weights = chances * (1 - chances)
    return np.sqrt(df / (2 * gammaincinv(df / 2, chances))), weights / weights.sum()


def over_seeds(differences: Sequence[float]) -> Estimate | None:
    """Estimates the mean of paired differences, one per seed, by the paired t test.

    It covers the randomness of training. None for fewer than three seeds, and if all have the same difference other
    than 0.
    """
    statistic = Statistic.of(differences)
    return statistic.estimate if statistic else None


def over_seeds_and_rows(differences: NDArray[Any], mean: float) -> Estimate | None:
    """Estimates a paired difference, covering the randomness of both training and the choice of rows.

    This is the analysis of variance with two random factors that reader studies in radiology use, with seeds in place
    of readers and rows in place of cases (Dorfman, Berbaum & Metz 1992). A bootstrap over rows and seeds, and Hillis'
    degrees of freedom, are overconfident with few seeds (docs/reports.md).

    Args:
        differences: Each row's contribution to the difference, shape (seeds, rows), at least two of each: for accuracy,
            the difference in correctness; for other metrics, the difference of their jackknife pseudo-values.
        mean: The mean over the seeds of the difference of the metric itself.

    Returns:
        The estimate; `error` is that of the seeds, `normal_error` that of the rows. None if all seeds have the same
        difference other than 0.
    """
    num_seeds, num_rows = differences.shape
    by_seed, by_row = differences.mean(axis=1), differences.mean(axis=0)
    residual = differences - by_seed[:, None] - by_row[None, :] + differences.mean()
    of_both = (residual**2).sum() / ((num_seeds - 1) * (num_rows - 1))
    of_rows = max(num_seeds * by_row.var(ddof=1) - of_both, 0.0)
    seeds_error = math.sqrt(by_seed.var(ddof=1) / num_seeds)
    if seeds_error < _NO_SPREAD < abs(mean):
        return None
    return Estimate(mean, seeds_error, num_seeds - 1, math.sqrt(of_rows / (num_seeds * num_rows)))


def over_rows(differences: NDArray[Any], mean: float) -> Estimate:
    """Estimates the difference of two single runs from values of shape (rows,); covers only the choice of rows."""
    return Estimate(mean, float(differences.std(ddof=1)) / math.sqrt(len(differences)), len(differences) - 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p value of McNemar's exact test.

    Args:
        only_first: Number of rows that only the first run has right.
        only_second: Number of rows that only the second has right.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusts the p values of one family of comparisons by Holm's method, in the order given.

    `statsmodels.stats.multitest.multipletests` gives the same, but collects garbage in the whole process at each call,
    45 ms in a process that has imported torch.
    """
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = highest
    return adjusted


def sign_flips(differences: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Tests several mean differences over data sets jointly, with a max-type permutation test.

    If the methods are equal over data sets, flipping the signs of all differences of a data set together is equally
    likely. Each flip of the signs gives one statistic per comparison, and the observed statistics are compared with
    the largest of these, step by step downwards (Westfall & Young 1993). So the smallest possible p value,
    2 / 2^n, does not grow with the number of comparisons. All 2^n flips are enumerated for up to
    `EXACT_FLIPS` data sets; for more, flips are sampled with a fixed seed, and the observed one is added to them.

    Args:
        differences: Shape (data sets, comparisons); NaN where a comparison lacks a data set.

    Returns:
        The p value of each comparison, alone and corrected for all of them.
    """
    values = np.nan_to_num(np.asarray(differences, dtype=float))
    num_sets, num_comparisons = values.shape
    # Dividing by the root of the sum of squares, which no flip changes, makes the comparisons comparable.
    scales = np.sqrt((values**2).sum(axis=0))
    values = values / np.where(scales > 0, scales, 1.0)
    observed = np.abs(values.sum(axis=0))
    flipped = np.abs(_signs(num_sets) @ values)
    exact = num_sets <= EXACT_FLIPS

    def share(statistic: NDArray[Any], value: float) -> float:
        # With the tolerance, sums that are equal in exact arithmetic count as equal.
        extreme = int((statistic >= value - 1e-9).sum())
        return extreme / len(flipped) if exact else (extreme + 1) / (len(flipped) + 1)

    alone = [share(flipped[:, index], observed[index]) for index in range(num_comparisons)]
    corrected = [1.0] * num_comparisons
    largest = np.zeros(len(flipped))
    # From the smallest statistic up, each is compared with the largest of itself and all smaller ones.
    order = np.argsort(observed, kind="stable")
    for index in order:
        largest = np.maximum(largest, flipped[:, index])
        corrected[index] = share(largest, observed[index])
    highest = 0.0
    for index in order[::-1]:
        corrected[index] = highest = max(highest, corrected[index])
    return alone, corrected


@lru_cache(maxsize=4)
def _signs(n: int) -> NDArray[Any]:
    if n <= EXACT_FLIPS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        bits = np.random.default_rng(_SEED).integers(2, size=(_FLIPS, n))
    return 1.0 - 2.0 * bits


# The key by which scores are paired, e.g. (task, seed).
Block = TypeVar("Block", bound=Hashable)


def average_ranks(scores: Mapping[str, Mapping[Block, float]]) -> tuple[dict[str, float], int]:
    """Computes the mean rank of each method (1 is best) over the blocks that all have; ties share their mean rank.

    Args:
        scores: By method and block, e.g. (task, seed); higher is better.

    Returns:
        The ranks, empty if no block has all methods, and the number of blocks.
    """
    shared = set.intersection(*(set(blocks) for blocks in scores.values())) if scores else set()
    if not shared:
        return {}, 0
    from scipy.stats import rankdata

    table = np.array([[blocks[block] for block in shared] for blocks in scores.values()])
    ranks = rankdata(-table, axis=0).mean(axis=1)
    return {method: float(rank) for method, rank in zip(scores, ranks, strict=True)}, len(shared)
