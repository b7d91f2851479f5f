"""Rows paired by seed: differences, likeness, and what seeds that change nothing give."""

import math

import pandas as pd
import pytest
from scipy import stats

from lit_prune.grid import Claim, Table, axis
from lit_prune.report import judge
from lit_prune.report.paired import alike, compare

CLOSE = pd.DataFrame({"a": [2.000, 2.010, 1.990, 2.003], "b": [2.001, 2.012, 1.989, 2.002]})
APART = CLOSE.assign(b=[2.10, 2.12, 2.09, 2.11])
NOISY = CLOSE.assign(b=[2.2, 1.8, 2.1, 1.9])


def test_rows_are_alike_where_both_one_sided_tests_say_so():
    found = alike(CLOSE, "a", "b", 0.01)
    differences = CLOSE["a"] - CLOSE["b"]
    # The distance to each bound, in standard errors.
    distances = [(bound - differences.mean()) / differences.sem() for bound in (0.01, -0.01)]
    by_hand = max(stats.t.sf(distances[0], 3), stats.t.cdf(distances[1], 3))
    assert found.p == pytest.approx(by_hand)
    assert found.p < 0.01
    assert (found.difference, found.low, found.high, found.n) == pytest.approx(
        tuple(getattr(compare(CLOSE, "a", "b"), name) for name in ("difference", "low", "high", "n"))
    )


def test_rows_beyond_the_bounds_are_apart_by_a_two_sided_p():
    differences = APART["a"] - APART["b"]
    by_hand = 2 * stats.t.cdf((differences.mean() + 0.01) / differences.sem(), 3)
    assert alike(APART, "a", "b", 0.01).p == pytest.approx(by_hand)


def test_noise_shows_neither():
    assert alike(NOISY, "a", "b", 0.01).p > 0.1


def test_seeds_that_change_nothing_are_no_test():
    same = pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert math.isnan(alike(same, "a", "b", 0.01).p)


@pytest.mark.parametrize(("values", "verdict"), [(CLOSE, "holds"), (APART, "fails"), (NOISY, "undecided")])
def test_a_claim_that_two_rows_are_alike_is_judged_by_its_bounds(values, verdict):
    table = Table(
        name="t", question="", source="", grid=axis("distill.temperature", 1.0, 2.0),
        label=lambda point: "a" if point["distill.temperature"] == 1 else "b", baseline="a", paper={},
        claims=(Claim("a", "b", "", within=0.01),), metrics=("lm_loss",),
    )  # fmt: skip
    tidy = values.melt(ignore_index=False, var_name="row", value_name="lm_loss").rename_axis("seed").reset_index()
    (line,) = judge(table, tidy.assign(reference=False)).to_dict("records")
    assert (line["verdict"], line["claim"]) == (verdict, "a = b within 0.01")
