"""Statistics over seeds and pairs: mean and spread, bootstrap intervals, sign-flip tests, Holm's correction, ranks.

All resampling uses a fixed seed, so the same records give the same report. docs/reports.md defines each number.
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

_RESAMPLES = 10_000

_SEED = 0


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
        sd = statistics.stdev(known) if len(known) > 1 else None
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

    def interval(self) -> tuple[float, float] | None:
        """Bootstrap 95 % confidence interval of the mean; None for a single value."""
        return bootstrap_interval(self.values)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Percentile bootstrap 95 % confidence interval of the mean.

    Args:
        values: One per seed or pair.

    Returns:
        Its lower and upper end; None for fewer than two values.
    """
    return _bootstrap_interval(tuple(values)) if len(values) > 1 else None


# Several forms and pages of one report ask for the same interval.
@lru_cache(maxsize=10_000)
def _bootstrap_interval(values: tuple[float, ...]) -> tuple[float, float]:
    # Importing it takes longer than most reports, and comparisons of methods with one seed need no interval.
    from scipy.stats import bootstrap

    found = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=_SEED)
    # scipy's own ends are these quantiles but for the rounding of (1 - 0.95) / 2.
    low, high = np.percentile(found.bootstrap_distribution, [2.5, 97.5])
    return float(low), float(high)


# The key by which scores are paired, e.g. (task, seed).
Block = TypeVar("Block", bound=Hashable)

SIGNIFICANCE = 0.05

# With at most this many pairs, all sign flips are enumerated.
EXACT_PAIRS = 15

_FLIPS = 20_000


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p value of the sign-flip permutation test on the mean difference of pairs.

    Under the null hypothesis every difference is equally likely to have the other sign. All 2^n flips are enumerated
    for up to `EXACT_PAIRS` pairs; for more, flips are sampled with a fixed seed, and the observed one is added to them.

    `scipy.stats.permutation_test` gives the same p values, but enumerates the flips in Python: 24 ms per test of 12
    pairs and 150 ms per test of 15, where these lines take 0.04 and 0.2 ms. A hundred tests would take 15 s.

    Args:
        differences: One per pair.

    Returns:
        The share of flips whose sum is at least as far from 0 as the observed one.
    """
    values = np.asarray(differences, dtype=float)
    sums = np.abs(_signs(len(values)) @ values)
    # The tolerance keeps sums equal that are equal in exact arithmetic.
    extreme = int((sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).sum())
    return extreme / len(sums) if len(values) <= EXACT_PAIRS else (extreme + 1) / (len(sums) + 1)


@lru_cache(maxsize=4)
def _signs(n: int) -> NDArray[Any]:
    if n <= EXACT_PAIRS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        bits = np.random.default_rng(_SEED).integers(2, size=(_FLIPS, n))
    return 1.0 - 2.0 * bits


def least_p(n: int) -> float:
    """The smallest p value that `sign_flip_p` can give for `n` pairs."""
    return min(1.0, 2 / 2**n) if n <= EXACT_PAIRS else 1 / (_FLIPS + 1)


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods over the same (task, seed) pairs.

    Attributes:
        mean: Mean of first minus second.
        interval: Bootstrap 95 % confidence interval of that mean over the pairs; None for one pair.
        n: Number of pairs.
        p: The p value of the sign-flip test, not corrected.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    p: float

    @property
    def least_p(self) -> float:
        """The smallest p value that this number of pairs can give."""
        return least_p(self.n)


def paired_difference(first: Mapping[Block, float], second: Mapping[Block, float]) -> PairedDifference | None:
    """Compares the scores of two methods over the pairs that both have.

    Pairs of several tasks are pooled without stratification, so a task with more pairs or larger differences weighs
    more.

    Args:
        first: Scores by pair, higher is better: errors must be negated.
        second: Likewise.

    Returns:
        The difference; None if the two share no pair.
    """
    differences = [score - second[pair] for pair, score in first.items() if pair in second]
    if not differences:
        return None
    mean = statistics.fmean(differences)
    return PairedDifference(mean, bootstrap_interval(differences), len(differences), sign_flip_p(differences))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusts the p values of one family of comparisons by Holm's method, in the order given (scipy has no Holm)."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = highest
    return adjusted


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
