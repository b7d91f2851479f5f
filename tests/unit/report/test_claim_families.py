"""Families of tests: what the claims of one table, figure or section of a paper share a correction with."""

import dataclasses

import pandas as pd
import pytest
from judged import FOUR, lines, toy
from scipy import stats

from lit_prune.config.table import ORDER, SMALLEST_EFFECT, Claim
from lit_prune.registry import table_of, tables
from lit_prune.report import judge, summarise
from lit_prune.report.statistics import holm


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("Table 15", "Table 15"),
        ("Tables 1 and 10", "Table 1"),
        ("Table 1 and Figure 6, before retraining", "Table 1"),
        ("Minitron, Table 10", "Table 10"),
        ("In Practice, Figure 8: the dashed line", "In Practice, Figure 8"),
        ("section 2.3: a boost to accuracy", "section 2.3"),
        ("appendix A.3: K <= 100", "appendix A.3"),
        ("best practice 5: instead of conventional training", "practice 5"),
        ("hearsay", "hearsay"),
        ("Wanda, Table 3: LLaMA-2-7B", "Wanda, Table 3"),
        ("Wanda, abstract; perplexity of LLaMA-2-7B", "Wanda, abstract"),
    ],
)
def test_a_family_is_where_the_paper_states_its_claims(source, family):
    assert Claim("a", "b", source).family == family


@pytest.mark.parametrize("name", tables())
def test_every_claim_names_its_place_and_has_the_same_bound(name):
    places = [claim.family.rpartition(", ")[2].split()[0] for claim in table_of(name).claims]
    assert {c.tolerance for c in table_of(name).claims if c.metric != ORDER} <= {None, SMALLEST_EFFECT}
    assert set(places) <= {"Table", "Figure", "section", "appendix", "practice", "abstract"}


def raw(row: str, other: str) -> float:
    return float(stats.ttest_rel(FOUR[row], FOUR[other]).pvalue)


def test_holm_keeps_sources_apart_and_retrained_from_zero_shot_rows():
    claims = (
        Claim("a", "c", "Table 1"), Claim("a0", "b0", "Table 1"), Claim("a", "d", "Table 1"),
        Claim("a", "b", "Table 2"),
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
