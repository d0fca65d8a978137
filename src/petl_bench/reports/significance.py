"""Numbers over seeds and pairs: mean and spread, bootstrap intervals, sign-flip tests, Holm's correction, ranks.

Everything random is seeded: the same records give the same report. docs/reports.md says what each number means.
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
    """Mean and sample standard deviation (n - 1) of `n` values; no deviation where n is 1."""

    mean: float
    sd: float | None
    n: int
    values: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic | None:
        """Describes the values that are there; None where there are none."""
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
        """Bootstrap 95 % confidence interval of the mean; None for one value."""
        return bootstrap_interval(self.values)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Percentile bootstrap 95 % confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    means = np.asarray(values, dtype=float)[_resamples(len(values))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# Groups of a report mostly have the same few sizes.
@lru_cache(maxsize=4)
def _resamples(n: int) -> NDArray[np.int32]:
    return np.random.default_rng(_SEED).integers(n, size=(_RESAMPLES, n), dtype=np.int32)


# What scores are paired by, e.g. (task, seed).
Block = TypeVar("Block", bound=Hashable)

SIGNIFICANCE = 0.05

# Up to so many pairs all sign flips are tried.
EXACT_PAIRS = 12

_FLIPS = 20_000


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test on the mean difference of pairs.

    Under the null hypothesis every difference is as likely with the other sign. All 2^n flips are tried up to
    `EXACT_PAIRS` pairs; beyond, a seeded sample of flips to which the observed one is added.
    """
    values = np.asarray(differences, dtype=float)
    sums = np.abs(_signs(len(values)) @ values)
    # Sums that are equal in exact arithmetic count as equal.
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
    """The least p that `sign_flip_p` can give with `n` pairs."""
    return min(1.0, 2 / 2**n) if n <= EXACT_PAIRS else 1 / (_FLIPS + 1)


@dataclass(frozen=True)
class PairedDifference:
    """Two methods over the same (task, seed) pairs.

    Attributes:
        mean: Mean of first minus second.
        interval: Bootstrap 95 % confidence interval of it over the pairs; None for one pair.
        n: Number of pairs.
        p: Of the sign-flip test, not corrected.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int
    p: float

    @property
    def least_p(self) -> float:
        """The least p that so many pairs can give."""
        return least_p(self.n)


def paired_difference(first: Mapping[Block, float], second: Mapping[Block, float]) -> PairedDifference | None:
    """Compares scores over the pairs that both have; None where there are none.

    Pairs of several tasks are pooled as they are: nothing is stratified, so a task with more pairs or wider
    differences weighs more. Scores of which less is better must come negated.
    """
    differences = [score - second[pair] for pair, score in first.items() if pair in second]
    if not differences:
        return None
    mean = statistics.fmean(differences)
    return PairedDifference(mean, bootstrap_interval(differences), len(differences), sign_flip_p(differences))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: p values adjusted for all comparisons of one family, in the order given."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = highest
    return adjusted


def average_ranks(scores: Mapping[str, Mapping[Block, float]]) -> tuple[dict[str, float], int]:
    """Mean rank of each method (1 is best) over the blocks that all methods have; ties share the mean rank.

    Args:
        scores: By method and block, e.g. (task, seed); more is better.

    Returns:
        The ranks, empty where no block has all methods, and the number of blocks.
    """
    shared = set.intersection(*(set(blocks) for blocks in scores.values())) if scores else set()
    if not shared:
        return {}, 0
    table = np.array([[blocks[block] for block in shared] for blocks in scores.values()])
    better = (table[None] > table[:, None]).sum(axis=1)
    equal = (table[None] == table[:, None]).sum(axis=1)
    ranks = (better + (equal + 1) / 2).mean(axis=1)
    return {method: float(rank) for method, rank in zip(scores, ranks, strict=True)}, len(shared)
