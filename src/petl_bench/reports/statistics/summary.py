"""Numbers over seeds: mean and spread, bootstrap intervals.

Everything random is seeded: the same records give the same report. docs/reports.md says what each number means.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

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
