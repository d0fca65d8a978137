"""Statistics against arithmetic that is written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from petl_bench.reports.significance import (
    Statistic,
    average_ranks,
    bootstrap_interval,
    holm,
    least_p,
    paired_difference,
    sign_flip_p,
)


def test_median_and_range():
    statistic = Statistic.of([0.9, 0.5, None, 0.7, float("nan"), 0.6])
    assert statistic.n == 4
    assert statistic.median == (0.6 + 0.7) / 2
    assert (statistic.lowest, statistic.highest) == (0.5, 0.9)


def test_bootstrap_of_equal_values_is_that_value_and_of_one_there_is_none():
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.5]) is None
    assert Statistic.of([0.5]).interval() is None


def test_bootstrap_where_the_distribution_of_the_mean_is_known():
    # Two values: the mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4; both tails have more than 2.5 %.
    assert bootstrap_interval([0, 1]) == (0, 1)
    # Of 0, 0, 0, 4 the mean is the number k of fours among four draws, Binomial(4, 1/4). P(k = 0) = 81/256 > 2.5 %, so
    # the lower end is 0. P(k = 4) = 1/256 < 2.5 % < P(k >= 3) = 13/256, so the upper end is 3.
    assert bootstrap_interval([0, 0, 0, 4]) == (0, 3)


def test_bootstrap_of_many_values_is_near_the_normal_interval_and_repeatable():
    values = [((7 * i) % 50) / 50 for i in range(50)]
    mean = sum(values) / 50
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / 50 / 50)
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    assert bootstrap_interval(values) == (low, high)


def test_sign_flips_of_three_pairs_by_hand():
    # 1, 2, 3: the sums of all flips are +-6, +-4, +-2, +-0; as far out as 6 are two of eight.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # 3, -1, 2 sums to 4: of +-6, +-4, +-2, +-0, four of eight are as far out.
    assert sign_flip_p([3, -1, 2]) == 4 / 8
    assert sign_flip_p([-3, 1, -2]) == 4 / 8
    assert sign_flip_p([0, 0, 0]) == 1
    assert sign_flip_p([0.4]) == 1


def test_rounding_does_not_tell_equal_sums_apart():
    integers = [1, 2, -3, 4, 5, 7, -6]
    sums = [
        abs(sum(s * x for s, x in zip(signs, integers, strict=True))) for signs in itertools.product((1, -1), repeat=7)
    ]
    exact = sum(value >= abs(sum(integers)) for value in sums) / 2**7
    assert sign_flip_p(integers) == exact
    assert sign_flip_p([x / 10 for x in integers]) == exact
    assert sign_flip_p([x / 1000 for x in integers]) == exact


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 15])
def test_up_to_fifteen_pairs_every_flip_is_counted(n):
    rng = np.random.default_rng(n)
    # Whole numbers, so that equal sums are equal to the last bit.
    differences = rng.integers(-5, 9, size=n)
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()))
    assert sign_flip_p(differences) == exact
    assert sign_flip_p([1] * n) == least_p(n)


def test_the_exact_test_agrees_with_scipy():
    differences = (np.array([0.5, -0.2, 0.1, 0.4, -0.3, 0.2, 0.6, -0.1]),)
    found = scipy.stats.permutation_test(differences, np.mean, permutation_type="samples", n_resamples=2**8)
    assert sign_flip_p(differences[0]) == found.pvalue


def test_beyond_fifteen_pairs_flips_are_sampled():
    differences = np.array([0.5, -0.2, 0.1, 0.4, -0.3, 0.2, 0.6, -0.1, 0.3, -0.4, 0.2, 0.1, -0.1, 0.2, -0.3, -0.2])
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    sampled = sign_flip_p(differences)
    assert 0.1 < exact < 0.5
    # Four standard errors of 20,000 draws.
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert sign_flip_p(differences) == sampled
    # None of 20,000 flips of 40 equal differences goes so far; the observed one counts.
    assert sign_flip_p([1.0] * 40) == 1 / 20_001 == least_p(40)


def test_the_least_p():
    assert [least_p(n) for n in (1, 2, 3, 5, 6)] == [1, 1 / 2, 1 / 4, 1 / 16, 1 / 32]
    assert sign_flip_p([1, 1, 1, 1, 1]) == least_p(5)


def test_holm_by_hand():
    # 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, which may not be less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_paired_differences_use_the_pairs_that_both_have():
    first = {("mrpc", 0): 0.8, ("mrpc", 1): 0.9, ("rte", 0): 0.7, ("rte", 1): 0.1}
    second = {("mrpc", 0): 0.7, ("mrpc", 1): 0.6, ("rte", 0): 0.5, ("mrpc", 2): 0.0}
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert (found.n, found.p, found.least_p) == (3, 2 / 8, 2 / 8)
    # Three draws of 0.1, 0.2, 0.3: all the lowest has the chance 1/27 > 2.5 %, and so has all the highest.
    assert found.interval == (pytest.approx(0.1), pytest.approx(0.3))
    assert paired_difference(first, {("cola", 0): 0.5}) is None


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
