"""Statistics against arithmetic that is written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from petl_bench.reports.significance import (
    POWER,
    Estimate,
    Statistic,
    average_ranks,
    holm,
    mcnemar,
    over_rows,
    over_seeds,
    over_seeds_and_rows,
    sign_flips,
)


def test_median_and_range():
    statistic = Statistic.of([0.9, 0.5, None, 0.7, float("nan"), 0.6])
    assert statistic.n == 4
    assert statistic.median == (0.6 + 0.7) / 2
    assert (statistic.lowest, statistic.highest) == (0.5, 0.9)


def test_intervals_are_those_of_the_t_distribution():
    values = [0.5, 0.52, 0.57]
    expected = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert Statistic.of(values).interval() == pytest.approx(expected, abs=1e-12)
    assert Statistic.of([0.5, 0.52]).interval() is None
    assert Statistic.of([0.5]).interval() is None
    # Equal scores are a coincidence, no certainty.
    assert Statistic.of([0.5, 0.5, 0.5]).interval() is None
    assert Statistic.of([0.0, 0.0, 0.0]).interval() == (0.0, 0.0)


def test_a_coincidence_of_two_seeds_is_no_certainty():
    """Equally good methods that each err on other rows: their difference is often the same with both seeds."""
    draw, alarms, ties = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        first, second = (draw.random((2, 2, 200)) >= 0.02).astype(float)
        estimate = over_seeds_and_rows(first - second, float((first - second).mean()))
        ties += estimate is None
        alarms += estimate is not None and estimate.p < 0.05
    assert ties > 50
    assert alarms <= 50 + 3 * (1000 * 0.05 * 0.95) ** 0.5


def test_over_seeds_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (3, 5, 30):
        first, second = rng.normal(size=(2, n))
        found = over_seeds(list(first - second))
        assert found.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue, abs=1e-10)
        expected = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
        assert found.interval() == pytest.approx((expected.low, expected.high), abs=1e-8)
    assert over_seeds([0.1, 0.2]) is None
    assert over_seeds([0.0, 0.0, 0.0]).p == 1
    # Three equal differences may be three times one row.
    assert over_seeds([0.1, 0.1, 0.1]) is None


def test_two_errors_together_have_the_distribution_of_their_sum():
    found = Estimate(1.0, error=0.2, df=2, normal_error=0.3)
    # By convolution: the normal density times the tail of t, integrated over the normal error.
    errors = np.linspace(-8, 8, 100_001)
    tails = scipy.stats.t.sf((1.0 - 0.3 * errors) / 0.2, 2)
    assert found.p == pytest.approx(
        2 * scipy.integrate.trapezoid(tails * scipy.stats.norm.pdf(errors), errors), abs=1e-6
    )
    low, high = found.interval()
    for shifted in (Estimate(1.0 - low, 0.2, 2, 0.3), Estimate(high - 1.0, 0.2, 2, 0.3)):
        assert shifted.p == pytest.approx(0.05, abs=1e-8)
    assert Estimate(2.0, 0.0, 2, 1.0).p == pytest.approx(2 * scipy.stats.norm.sf(2), abs=1e-10)
    assert Estimate(0.0, 0.0, 2).p == 1.0


@pytest.mark.parametrize("df", [2, 4, 9, 30])
def test_power_is_about_what_it_says(df):
    size = Estimate(0.0, 1.0, df).detectable()
    # The exact power of a t test, by the noncentral distribution.
    power = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, df), df, size)
    assert power == pytest.approx(POWER, abs=0.05)
    assert Estimate(0.0, 1.0, df).detectable(10) > size


def test_seeds_and_rows_by_hand():
    # By seed the means are 1/2 and 1/4; by row 1, 0.5, 0, 0.
    rows = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = over_seeds_and_rows(rows, rows.mean())
    assert (found.mean, found.df) == (0.375, 1)
    # The standard error of two seed means: sqrt(var / 2) = sqrt((1/32) / 2).
    assert found.error == pytest.approx(1 / 8)
    # Residuals +-1/8 and one +-3/8 a seed: their squares sum to 6/64 + 18/64 = 3/8, over (2 - 1)(4 - 1).
    residual = rows - rows.mean(axis=1, keepdims=True) - rows.mean(axis=0) + rows.mean()
    of_both = (residual**2).sum() / 3
    of_rows = 2 * np.var([1, 0.5, 0, 0], ddof=1) - of_both
    assert found.normal_error == pytest.approx(math.sqrt(of_rows / 8))


def test_seeds_and_rows_agree_with_anova():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    frame = pd.DataFrame({
        "value": values.ravel(), "seed": np.repeat(range(4), 30), "row": np.tile(range(30), 4),
    })  # fmt: skip
    squares = anova_lm(ols("value ~ C(seed) + C(row)", frame).fit())["mean_sq"]
    found = over_seeds_and_rows(values, values.mean())
    assert found.error**2 * 120 == pytest.approx(squares["C(seed)"], rel=1e-9)
    assert found.normal_error**2 * 120 == pytest.approx(squares["C(row)"] - squares["Residual"], rel=1e-9)


def test_of_single_runs_rows_are_the_sample():
    rows = np.array([1.0, 0.0, -1.0, 1.0, 0.0, 0.0])
    assert over_rows(rows, rows.mean()).p == pytest.approx(scipy.stats.ttest_1samp(rows, 0).pvalue, abs=1e-10)


def test_mcnemar_of_two_against_twelve():
    # 2 (C(14, 0) + C(14, 1) + C(14, 2)) / 2^14 = 212 / 16384.
    assert mcnemar(2, 12) == pytest.approx(212 / 16384, abs=1e-12)
    assert round(mcnemar(2, 12), 4) == 0.0129
    assert mcnemar(0, 0) == 1.0


def test_sign_flips_of_three_data_sets_by_hand():
    # 1, 2, 3: the sums of all flips are +-6, +-4, +-2, +-0; as far out as 6 are two of eight.
    assert sign_flips(np.array([[1], [2], [3]])) == ([2 / 8], [2 / 8])
    # 3, -1, 2 sums to 4: of +-6, +-4, +-2, +-0, four of eight are as far out.
    assert sign_flips(np.array([[3], [-1], [2]]))[0] == [4 / 8]
    assert sign_flips(np.zeros((3, 2))) == ([1, 1], [1, 1])


@pytest.mark.parametrize("n", [6, 8, 12])
def test_alone_the_sign_flips_agree_with_scipy(n):
    differences = np.random.default_rng(n).normal(0.5, 1, size=(n, 3))
    alone, corrected = sign_flips(differences)
    for column, p in zip(differences.T, alone, strict=True):
        found = scipy.stats.permutation_test((column,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(found.pvalue, abs=1e-10)
    assert all(together >= p for together, p in zip(corrected, alone, strict=True))


def test_equal_sums_are_counted_as_equal():
    integers = np.array([1, 2, -3, 4, 5, 7, -6])
    signs = np.array(list(itertools.product((1, -1), repeat=7)))
    exact = np.mean(np.abs(signs @ integers) >= abs(integers.sum()))
    for scale in (1, 10, 1000):
        assert sign_flips((integers / scale)[:, None])[0] == [exact]


def test_the_correction_does_not_raise_the_least_p():
    # Every data set favours the first method in all three comparisons: 2 of 2^6 flips, however many there are.
    differences = np.array([[1.0, 2.0, 3.0]]) * np.linspace(1, 2, 6)[:, None]
    assert sign_flips(differences)[1] == [2 / 2**6] * 3


def test_the_correction_steps_down():
    """By definition: each comparison against the largest statistic of itself and those behind it."""
    differences = np.random.default_rng(3).normal([1.0, 0.5, 0.0, -0.3], 1, size=(8, 4))
    scaled = differences / np.sqrt((differences**2).sum(axis=0))
    flipped = np.abs(np.array(list(itertools.product((1, -1), repeat=8))) @ scaled)
    observed = np.abs(scaled.sum(axis=0))
    order = np.argsort(-observed)
    by_step = [np.mean(flipped[:, order[step:]].max(axis=1) >= observed[order[step]] - 1e-9) for step in range(4)]
    expected = dict(zip(order, np.maximum.accumulate(by_step), strict=True))
    assert sign_flips(differences)[1] == [expected[index] for index in range(4)]


def test_a_missing_data_set_counts_for_nothing():
    with_gap = np.array([[1.0, 1.0], [2.0, np.nan], [3.0, 3.0]])
    assert sign_flips(with_gap)[0][1] == sign_flips(np.array([[1.0], [3.0]]))[0][0]


def test_beyond_fifteen_data_sets_flips_are_sampled():
    differences = np.array([0.5, -0.2, 0.1, 0.4, -0.3, 0.2, 0.6, -0.1, 0.3, -0.4, 0.2, 0.1, -0.1, 0.2, -0.3, -0.2])
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    (sampled,), _ = sign_flips(differences[:, None])
    assert 0.1 < exact < 0.5
    # Four standard errors of 20,000 draws.
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    # None of 20,000 flips of 40 equal differences goes so far; the observed one counts.
    assert sign_flips(np.ones((40, 1)))[0] == [1 / 20_001]


def test_holm_by_hand_and_by_statsmodels():
    # 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, which may not be less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    ps = list(np.random.default_rng(4).random(12) ** 3)
    assert holm(ps) == pytest.approx(list(multipletests(ps, method="holm")[1]), abs=1e-12)


def test_average_ranks_with_ties_by_hand():
    scores = {
        "a": {1: 0.9, 2: 0.7, 3: 0.1},
        "b": {1: 0.9, 2: 0.8, 3: 0.2},
        "c": {1: 0.5, 2: 0.8},
    }
    # Block 1: 1.5, 1.5, 3. Block 2: 3, 1.5, 1.5. Block 3 lacks c.
    assert average_ranks(scores) == ({"a": 2.25, "b": 1.5, "c": 2.25}, 2)
    assert average_ranks({"a": {1: 0.5}, "b": {2: 0.5}}) == ({}, 0)
    assert average_ranks({}) == ({}, 0)
