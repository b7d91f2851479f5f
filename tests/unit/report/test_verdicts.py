"""Verdicts on claims, by tests over seeds or sequences, and by a smallest effect."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from judged import CLOSE, FOUR, lines, toy, verdict

from lit_prune.config.table import ORDER, SMALLEST_EFFECT, Claim
from lit_prune.report import judge
from lit_prune.report.sequences import read_sequences
from lit_prune.report.trajectories import order_by_seed
from lit_prune.report.verdicts import Measured, by_seed

APART = CLOSE.assign(b=[2.10, 2.12, 2.09, 2.11])
NOISY = CLOSE.assign(b=[2.2, 1.8, 2.1, 1.9])


@pytest.mark.parametrize(("values", "expected"), [(CLOSE, "holds"), (APART, "fails"), (NOISY, "undecided")])
def test_a_claim_that_two_rows_are_alike_is_judged_by_its_bounds(values, expected):
    line = verdict(Claim("a", "b", "", tolerance=0.01), lines(values))
    assert (line["verdict"], line["claim"]) == (expected, "a = b within 0.01")
    assert math.isnan(line["p_alike"])


# The smallest effect of interest


@pytest.mark.parametrize(
    ("shift", "noise", "expected"),
    [
        (0.0101, 0.0001, "holds"),
        (-0.0101, 0.0001, "fails"),
        (0.0095, 0.0001, "negligible"),
        (0.0016, 0.0001, "negligible"),
        (-0.0016, 0.0001, "negligible"),
        (0.0, 0.001, "negligible"),
        (0.0099, 0.001, "undecided"),  # more than 0 beyond doubt, more than 0.01 or not
        (0.0, 0.1, "undecided"),
        (0.1, 0.3, "undecided"),
    ],
)
def test_a_claim_needs_a_difference_that_matters(shift, noise, expected):
    a = pd.Series([2.0, 2.1, 1.9, 2.05])
    values = pd.DataFrame({"a": a, "b": a + shift + noise * np.array([1.0, -1.0, 0.5, -0.5])})
    line = verdict(Claim("a", "b", ""), lines(values))
    assert line["verdict"] == expected
    if shift == 0.0099 and noise == 0.001:
        assert line["p"] < 0.001


@pytest.mark.parametrize(("factor", "expected"), [(1.011, "holds"), (1.009, "negligible")])
def test_of_a_ratio_one_per_cent_matters(factor, expected):
    b = pd.Series([100.0, 101.0, 99.0, 100.5])
    values = pd.DataFrame({"a": factor * b + [0.01, -0.01, 0.01, -0.01], "b": b})
    tidy = lines(values).rename(columns={"lm_loss": "speedup"})
    table = dataclasses.replace(toy(Claim("a", "b", "")), metrics=("speedup",), higher_is_better=("speedup",))
    assert judge(table, tidy)["verdict"].to_list() == [expected]
    measured = Measured("speedup", by_seed(tidy, "speedup"), pd.DataFrame(columns=["row"]))
    assert measured.smallest_effect("b") == pytest.approx(SMALLEST_EFFECT * 100.125)


# Seeds that change nothing


def of_sequences(a: list[float], b: list[float], metric: str = "lm_loss") -> pd.DataFrame:
    """Losses per token of two rows on sequences of ten tokens."""
    frames = [
        pd.DataFrame({"row": row, "metric": metric, "sequence": range(len(x)), "loss": 10 * np.array(x), "tokens": 10})
        for row, x in (("a", a), ("b", b))
    ]
    return pd.concat(frames, ignore_index=True)


WAVES = 2 + np.sin(np.arange(32.0))
SMALL = 0.001 * np.cos(np.arange(32.0))


@pytest.mark.parametrize(
    ("shift", "noise", "tolerance", "higher", "expected"),
    [
        (0.1, 1.0, None, (), "holds"),
        (-0.1, 1.0, None, (), "fails"),
        (0.1, 1.0, None, ("lm_loss",), "fails"),
        (0.005, 1.0, None, (), "negligible"),
        (0.1, 1000.0, None, (), "undecided"),
        (0.1, 1.0, 0.2, (), "holds"),
        (0.1, 1.0, 0.05, (), "fails"),
    ],
)
def test_where_seeds_change_nothing_the_validation_sequences_decide(shift, noise, tolerance, higher, expected):
    theirs = WAVES + shift + noise * SMALL
    tidy = lines(pd.DataFrame({"a": [WAVES.mean()] * 5, "b": [theirs.mean()] * 5}))
    line = verdict(Claim("a", "b", "", tolerance=tolerance), tidy, of_sequences(WAVES, theirs), higher_is_better=higher)
    assert (line["verdict"], line["over"], line["n"]) == (expected, "sequences", 32)
    assert line["difference"] == pytest.approx(WAVES.mean() - theirs.mean())
    errors = (WAVES - theirs).std() / math.sqrt(32)
    assert (line["low"], line["high"]) == pytest.approx(
        (line["difference"] - 1.96 * errors, line["difference"] + 1.96 * errors), abs=0.2 * errors
    )


def test_without_losses_by_sequence_nothing_decides():
    line = verdict(Claim("a", "b", ""), lines(pd.DataFrame({"a": [2.0] * 5, "b": [3.0] * 5})))
    assert (line["verdict"], line["over"], line["n"], line["difference"]) == ("undecided", "seeds", 5, -1)
    assert math.isnan(line["p"])


def test_where_seeds_change_a_row_they_are_the_noise():
    line = verdict(Claim("a", "b", ""), lines(APART), of_sequences(WAVES, WAVES + 1))
    assert (line["over"], line["n"]) == ("seeds", 4)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize(("b", "tolerance"), [(2.0, None), (2.0 + 1e-12, None), (2.0, 0.05)])
def test_rows_that_are_the_same_in_every_seed_are_identical(b, tolerance, seeds):
    same = pd.DataFrame({"a": [2.0] * seeds, "b": [b] * seeds})
    assert verdict(Claim("a", "b", "", tolerance=tolerance), lines(same))["verdict"] == "identical"


def test_rows_that_seeds_change_alike_are_identical():
    assert verdict(Claim("a", "b", ""), lines(CLOSE.assign(b=CLOSE["a"])))["verdict"] == "identical"


def test_one_draw_is_no_exact_difference():
    assert verdict(Claim("a", "b", ""), lines(pd.DataFrame({"a": [2.0], "b": [3.0]})))["verdict"] == "undecided"


# Claims that are not one ordering of two rows


@pytest.mark.parametrize(
    ("shift", "expected"), [(-0.1, "holds"), (0.0, "holds"), (0.004, "holds"), (0.0095, "undecided"), (0.1, "fails")]
)
def test_a_row_that_is_not_worse_may_be_better_by_any_amount(shift, expected):
    b = pd.Series([2.0, 2.1, 1.9, 2.05])
    values = pd.DataFrame({"a": b + shift + 0.001 * np.array([1.0, -1.0, 0.5, -0.5]), "b": b})
    line = verdict(Claim("a", "b", "", tolerance=0.01, or_better=True), lines(values))
    assert line["verdict"] == expected
    claim = Claim("a", "b", "", tolerance=0.01, or_better=True)
    turned = dataclasses.replace(toy(claim), metrics=("gain",), higher_is_better=("gain",))
    gain = lines(4 - values).rename(columns={"lm_loss": "gain"})
    assert judge(turned, gain)["verdict"].to_list() == [expected]


@pytest.mark.parametrize(
    ("before", "after", "expected", "decides"),
    [
        (0.3, -0.2, "holds", -0.2),  # of two halves that hold, the one that is less sure
        (0.3, 0.2, "fails", 0.2),
        (-0.3, -0.2, "fails", 0.3),
        (0.001, -0.2, "negligible", -0.001),
        (0.3, None, "not run", None),
    ],
)
def test_a_flip_holds_where_both_halves_do_and_fails_where_one_does(before, after, expected, decides):
    noise = np.array([0.001, -0.001, 0.0005, -0.0005])
    b = pd.Series([2.0, 2.1, 1.9, 2.05])
    tidy = lines(pd.DataFrame({"a": b + (np.nan if after is None else after) + 2 * noise, "b": b}))
    start = lines(pd.DataFrame({"a": b + before + noise, "b": b}))["lm_loss"]
    table = dataclasses.replace(toy(), metrics=("lm_loss", "lm_loss_before"))
    claim = Claim("a", "b", "Table 1", before="lm_loss_before")
    line = judge(dataclasses.replace(table, claims=(claim,)), tidy.assign(lm_loss_before=start)).iloc[0]
    assert line["verdict"] == expected
    if decides is not None:
        assert line["difference"] == pytest.approx(decides, abs=0.001)


def test_a_flip_makes_no_further_test_in_its_family():
    tidy = lines(APART).assign(lm_loss_before=lines(APART)["lm_loss"])
    table = dataclasses.replace(toy(), metrics=("lm_loss", "lm_loss_before"))
    alone, flip = Claim("a", "b", "Table 1"), Claim("a", "b", "Table 1", before="lm_loss_before")
    one = judge(dataclasses.replace(table, claims=(alone,)), tidy)
    both = judge(dataclasses.replace(table, claims=(alone, flip)), tidy)
    assert both["p"].iloc[0] == one["p"].iloc[0]


def checks_of(*orders: str) -> pd.DataFrame:
    """Checks of one seed each at steps 0, 10, ..., at which the rows have these orders, such as "abc", best first."""
    return pd.DataFrame(
        [
            {"row": row, "seed": seed, "step": 10 * place, "lm_loss": 2.0 + 0.1 * order.index(row), "kd_loss": 0.0}
            for seed, found in enumerate(orders)
            for place, order in enumerate(found.split())
            for row in order
        ]
    )


def test_a_claim_about_the_order_of_all_rows_compares_it_with_the_last_one_by_seed():
    checks = checks_of("cba abc abc abc", "cab acb abc abc", "bac bac abc abc")
    taus = order_by_seed(checks, ["0 %", "34 %", "75 %", "100 %"])
    third = 1 / 3
    assert taus.to_numpy() == pytest.approx(np.array([[-1, 1, 1, 1], [-third, 1, 1, 1], [third, 1, 1, 1]]))
    claims = (Claim("75 %", "0 %", "Figure 9", metric=ORDER), Claim("0 %", "75 %", "Figure 9", metric=ORDER))
    table = toy(*claims, rows=("a", "b", "c"))
    tidy = lines(CLOSE.assign(c=CLOSE["a"]))
    found = judge(table, tidy, checks=checks)
    assert found["difference"].to_list() == pytest.approx([4 / 3, -4 / 3])
    assert found["n"].to_list() == [3, 3]
    for nothing in (None, pd.DataFrame(columns=checks.columns)):
        assert set(judge(table, tidy, checks=nothing)["verdict"]) == {"not run"}
    assert read_sequences(table, tidy, {}).empty
    assert table.named_rows == ["a", "b", "c"]


@pytest.mark.parametrize(("seeds", "verdict"), [(3, "undecided"), (5, "holds")])
def test_an_order_that_is_the_same_in_every_seed_is_stable_by_a_sign_test(seeds, verdict):
    table = toy(Claim("100 %", "75 %", "Figure 9", metric=ORDER, tolerance=0.1), rows=("a", "b", "c"))
    (line,) = judge(table, lines(FOUR[["a", "b", "c"]]), checks=checks_of(*["cba abc abc abc"] * seeds)).to_dict(
        "records"
    )
    assert (line["verdict"], line["p"], line["n"]) == (verdict, pytest.approx(0.5**seeds), seeds)
