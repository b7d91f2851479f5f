"""Rows paired by seed: differences, bounds, and seeds that change nothing; orders over seeds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lit_prune.report.statistics import agree_over_seeds, compare, kendall_taus, paired_bootstrap, per_token, sign_test

CLOSE = pd.DataFrame({"a": [2.000, 2.010, 1.990, 2.003], "b": [2.001, 2.012, 1.989, 2.002]})
APART = CLOSE.assign(b=[2.10, 2.12, 2.09, 2.11])
NOISY = CLOSE.assign(b=[2.2, 1.8, 2.1, 1.9])


def test_a_difference_has_the_p_and_interval_of_a_paired_t_test():
    found, test = compare(APART, "a", "b"), stats.ttest_rel(APART["a"], APART["b"])
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, *test.confidence_interval()))
    assert (found.difference, found.n) == (pytest.approx(-0.10425), 4)
    assert math.isnan(found.p_alike)


def test_rows_are_alike_where_both_one_sided_tests_say_so():
    found = compare(CLOSE, "a", "b", 0.01)
    differences = CLOSE["a"] - CLOSE["b"]
    # The distance to each bound, in standard errors.
    distances = [(bound - differences.mean()) / differences.sem() for bound in (0.01, -0.01)]
    by_hand = max(stats.t.sf(distances[0], 3), stats.t.cdf(distances[1], 3))
    assert found.p_alike == pytest.approx(by_hand)
    assert found.p_alike < 0.01
    assert found.p_beyond == 1


def test_rows_beyond_the_bounds_are_apart_by_a_two_sided_p():
    differences = APART["a"] - APART["b"]
    by_hand = 2 * stats.t.cdf((differences.mean() + 0.01) / differences.sem(), 3)
    found = compare(APART, "a", "b", 0.01)
    assert found.p_beyond == pytest.approx(by_hand)
    assert found.p_alike > 0.99


def test_noise_shows_neither():
    found = compare(NOISY, "a", "b", 0.01)
    assert min(found.p, found.p_alike, found.p_beyond) > 0.1


@pytest.mark.parametrize(("b", "identical"), [(1.0, True), (1.0 + 1e-12, True), (1.1, False)])
def test_seeds_that_change_nothing_are_no_test(b, identical):
    found = compare(pd.DataFrame({"a": [1.0, 1.0], "b": [b, b]}), "a", "b", 0.01)
    assert math.isnan(found.p)
    assert math.isnan(found.p_alike)
    assert (found.constant, found.identical, found.difference == 0) == (True, identical, identical)


@pytest.mark.parametrize(
    ("difference", "p", "p_alike", "p_beyond"),
    [(0.0, 1, 1 / 32, 1), (0.05, 1 / 16, 1 / 32, 1), (-0.05, 1 / 16, 1 / 32, 1), (0.2, 1 / 16, 1, 1 / 16)],
)
def test_five_seeds_on_one_side_are_a_sign_test(difference, p, p_alike, p_beyond):
    values = pd.DataFrame({"a": [1.0 + difference] * 5, "b": [1.0] * 5})
    found = sign_test(compare(values, "a", "b", 0.1), 0.1)
    assert (found.p, found.p_alike, found.p_beyond, found.n) == pytest.approx((p, p_alike, p_beyond, 5))
    assert math.isnan(found.low)
    assert not found.identical


# Sequences

OURS = pd.DataFrame({"loss": [20.0, 31.0, 44.0, 52.0], "tokens": [10, 10, 20, 20]})


def test_a_difference_over_sequences_is_of_all_nats_over_all_tokens():
    theirs = OURS.assign(loss=[20.0, 32.0, 44.0, 57.0])
    found = paired_bootstrap(OURS, theirs, statistic=per_token, bound=0.2)
    assert found.difference == pytest.approx((147 - 153) / 60)
    every = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1)
    nats, tokens = (OURS["loss"] - theirs["loss"]).to_numpy()[every].sum(0), OURS["tokens"].to_numpy()[every].sum(0)
    exact = nats / tokens  # of all 256 resamples
    assert found.p == pytest.approx(2 * (exact >= 0).mean(), abs=0.01)
    assert found.p_alike == pytest.approx((exact <= -0.2).mean(), abs=0.01)
    assert found.p_beyond == pytest.approx(min(1, 2 * (exact >= -0.2).mean()), abs=0.01)


# Orders


def test_an_order_has_the_interval_of_its_resampled_seeds():
    # Seed 0 has the paper's order, seed 1 turns one of the three pairs over, seed 2 all.
    values = pd.DataFrame({"a": [1.0, 1.0, 3.0], "b": [2.0, 3.0, 2.0], "c": [3.0, 2.0, 1.0]})
    theirs = pd.Series({"a": 0.1, "b": 0.2, "c": 0.3, "not here": 0.4})
    found = agree_over_seeds(values, theirs)
    # Means of 5/3, 7/3 and 2.
    assert (found.n, found.tau) == (3, pytest.approx(1 / 3))
    assert (found.low, found.high) == pytest.approx((-1, 1))


def test_an_order_that_no_seed_changes_has_an_interval_of_no_width():
    values = pd.DataFrame({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [1.5, 1.6]})
    found = agree_over_seeds(values, pd.Series({"a": 1.0, "b": 2.0, "c": 3.0}))
    assert (found.tau, found.low, found.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_one_seed_has_no_interval():
    found = agree_over_seeds(pd.DataFrame({"a": [1.0], "b": [2.0]}), pd.Series({"a": 1.0, "b": 2.0}))
    assert found.tau == 1
    assert math.isnan(found.low)


def test_taus_of_many_lines_are_those_of_scipy():
    draw = np.random.default_rng(0)
    ours, theirs = draw.integers(0, 5, (50, 9)).astype(float), draw.integers(0, 5, 9).astype(float)
    ours[0] = 1.0  # a line without an order
    expected = [stats.kendalltau(line, theirs).statistic for line in ours]
    np.testing.assert_allclose(kendall_taus(ours, theirs), expected, rtol=1e-12)
    assert np.isnan(expected[0])
