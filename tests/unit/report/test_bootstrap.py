"""Two checkpoints over the same documents: by hand, with noise of a known size, and without a valid test."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from lit_prune.report.statistics import bits_per_byte, paired_bootstrap


@pytest.fixture(scope="module")
def normal():
    """200 documents: ours, and theirs that differ by 0.1 with a deviation of 0.5."""
    draw = np.random.default_rng(1)
    ours = draw.normal(3, 2, 200)
    return ours, ours - draw.normal(0.1, 0.5, 200)


def test_three_documents_give_what_their_27_resamples_give():
    ours, theirs = np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.5, 4.0])
    every = [np.mean([(ours - theirs)[i] for i in drawn]) for drawn in itertools.product(range(3), repeat=3)]
    found = paired_bootstrap(ours, theirs)
    assert (found.difference, found.n) == (pytest.approx(0.5 / 3), 3)
    assert (found.low, found.high) == pytest.approx((min(every), max(every)))
    share = min(np.mean(np.array(every) <= 0), np.mean(np.array(every) >= 0))
    assert found.p == pytest.approx(min(1, 2 * share), abs=0.03)


def test_what_both_have_in_common_is_no_noise(normal):
    ours, theirs = normal
    found, differences = paired_bootstrap(ours, theirs), ours - theirs
    error = differences.std() / math.sqrt(200)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.1 * error
    )
    # Unpaired, the documents' own deviation of 2 would hide it.
    assert paired_bootstrap(ours, np.random.default_rng(0).permutation(theirs)).p > 0.3


def test_swapping_the_two_turns_the_sign_and_nothing_else(normal):
    there, back = paired_bootstrap(*normal), paired_bootstrap(*normal[::-1])
    assert (back.difference, back.low, back.high, back.p) == pytest.approx(
        (-there.difference, -there.high, -there.low, there.p)
    )


def test_p_and_interval_agree_and_neither_is_ever_certain():
    ours = np.arange(20.0)
    clear, none = paired_bootstrap(ours, ours - 1 + 0.1 * np.cos(ours)), paired_bootstrap(ours, ours + np.cos(ours))
    assert clear.low > 0
    assert clear.p == pytest.approx(2 / 10_000)
    assert none.low < 0 < none.high
    assert none.p > 0.05


def test_a_ratio_is_of_sums_so_that_long_documents_count_for_more():
    ours = pd.DataFrame({"nll": [10.0, 200.0, 30.0], "bytes": [10, 100, 20]})
    theirs = ours.assign(nll=[20.0, 200.0, 20.0])
    assert paired_bootstrap(ours, theirs, statistic=bits_per_byte).difference == pytest.approx(0, abs=1e-12)
    theirs = theirs.assign(bytes=[10, 120, 20])
    by_hand = (240 / 130 - 240 / 150) / math.log(2)
    assert paired_bootstrap(ours, theirs, statistic=bits_per_byte).difference == pytest.approx(by_hand)


def test_one_seed_gives_one_answer(normal):
    assert paired_bootstrap(*normal) == paired_bootstrap(*normal)
    assert paired_bootstrap(*normal).low != paired_bootstrap(*normal, seed=1).low


@pytest.mark.parametrize("theirs", [[0.0, 1.0, 1.0], [1.5, 2.5, 2.5]])
def test_a_difference_that_is_the_same_everywhere_is_no_test(theirs):
    found = paired_bootstrap([0.0, 1.0, 1.0], theirs)
    assert found.difference == -theirs[0]
    assert math.isnan(found.p)
    assert math.isnan(found.low)


def test_one_document_is_no_test():
    found = paired_bootstrap([2.0], [1.5])
    assert math.isnan(found.p)
    assert (found.difference, found.n) == (0.5, 1)


@pytest.mark.parametrize(("ours", "theirs"), [([1, 2, 3], [1, 2]), ([], [])])
def test_other_documents_and_none_are_refused(ours, theirs):
    with pytest.raises(ValueError, match=f"{len(ours)} documents cannot be paired with {len(theirs)}"):
        paired_bootstrap(ours, theirs)
