"""Rows paired by seed: differences, likeness, and what seeds that change nothing give."""

import dataclasses
import math

import pandas as pd
import pytest
from scipy import stats

from lit_prune.config.table import Claim, Table
from lit_prune.report import judge, summarise
from lit_prune.report.statistics import alike, compare, holm

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
        name="t", question="", source="", baseline="a",
        rows={"a": {"distill.temperature": 1.0}, "b": {"distill.temperature": 2.0}},
        claims=(Claim("a", "b", "", tolerance=0.01),), metrics=("lm_loss",),
    )  # fmt: skip
    tidy = values.melt(ignore_index=False, var_name="row", value_name="lm_loss").rename_axis("seed").reset_index()
    (line,) = judge(table, tidy.assign(reference=False)).to_dict("records")
    assert (line["verdict"], line["claim"]) == (verdict, "a = b within 0.01")


# Draws that change nothing, and families of tests


def toy(*claims: Claim, rows: tuple[str, ...] = ("a", "b"), **fields: object) -> Table:
    changes = {row: {"distill.temperature": 1.0 + i} for i, row in enumerate(rows)}
    return Table(
        name="t", question="", source="", rows=changes, baseline="a", claims=claims,
        metrics=("lm_loss",), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def lines(values: pd.DataFrame, zero_shot: tuple[str, ...] = ()) -> pd.DataFrame:
    tidy = values.melt(ignore_index=False, var_name="row", value_name="lm_loss").rename_axis("seed").reset_index()
    return tidy.assign(reference=False, tokens=[0.0 if row in zero_shot else 512.0 for row in tidy["row"]])


@pytest.mark.parametrize(
    ("b", "within", "higher", "verdict"),
    [
        (2.1, None, (), "holds"),
        (1.9, None, (), "fails"),
        (2.1, None, ("lm_loss",), "fails"),
        (2.0, None, (), "undecided"),
        (2.0 + 1e-12, None, (), "undecided"),
        (2.1, 0.2, (), "holds"),
        (2.1, 0.05, (), "fails"),
        (2.0, 0.05, (), "holds"),
    ],
)
def test_a_difference_that_is_the_same_in_every_draw_is_judged_by_its_sign(b, within, higher, verdict):
    same = pd.DataFrame({"a": [2.0] * 5, "b": [b] * 5})
    (line,) = judge(toy(Claim("a", "b", "", tolerance=within), higher_is_better=higher), lines(same)).to_dict("records")
    assert line["verdict"] == verdict
    assert line["n"] == 5
    assert math.isnan(line["p"])


def test_one_draw_is_no_exact_difference():
    (line,) = judge(toy(Claim("a", "b", "")), lines(pd.DataFrame({"a": [2.0], "b": [3.0]}))).to_dict("records")
    assert line["verdict"] == "undecided"


FOUR = CLOSE.assign(
    c=[2.02, 2.05, 2.00, 2.03], d=[2.05, 2.01, 2.02, 2.04], a0=[3.00, 3.01, 2.99, 3.02], b0=[3.1, 3.05, 3.09, 3.12]
)
"""Rows a to d are retrained, a0 and b0 are not."""


def raw(row: str, other: str) -> float:
    return float(stats.ttest_rel(FOUR[row], FOUR[other]).pvalue)


def test_holm_keeps_sources_apart_and_retrained_from_zero_shot_rows():
    claims = (
        Claim("a", "c", "Table 1"), Claim("a0", "b0", "Table 1"), Claim("a", "d", "Table 1"),
        Claim("a", "b", "Table 2", family="Table 2"),
    )  # fmt: skip
    verdicts = judge(toy(*claims, rows=tuple(FOUR)), lines(FOUR, zero_shot=("a0", "b0")))
    first = sorted([raw("a", "c"), raw("a", "d")])
    assert sorted(verdicts.loc[[0, 2], "p"]) == pytest.approx([2 * first[0], max(2 * first[0], first[1])])
    assert verdicts.loc[[1, 3], "p"].to_list() == pytest.approx([raw("a0", "b0"), raw("a", "b")])


def test_holm_over_rows_keeps_retrained_from_zero_shot_rows():
    summary = summarise(toy(rows=tuple(FOUR)), lines(FOUR, zero_shot=("a0", "b0")))
    for family in (["b", "c", "d"], ["a0", "b0"]):
        by_hand = holm(pd.Series({row: raw(row, "a") for row in family}))
        assert summary.loc[family, "p"].to_list() == pytest.approx(by_hand.to_list())


def test_a_metric_before_retraining_is_zero_shot():
    claims = (Claim("a", "c", ""), Claim("a", "c", "", metric="lm_loss_before"))
    table = dataclasses.replace(toy(rows=tuple(FOUR)), metrics=("lm_loss", "lm_loss_before"), claims=claims)
    tidy = lines(FOUR)
    verdicts = judge(table, tidy.assign(lm_loss_before=tidy["lm_loss"]))
    assert verdicts["p"].to_list() == pytest.approx([raw("a", "c")] * 2)
