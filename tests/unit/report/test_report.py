"""Reports of finished cells: numbers against computations by hand and scipy."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished import CLM, COSINE, KLD, KLD_CE, LOSSES, MSE, RKLD, RKLD_ALONE, answer, filled, partly, requested, shown
from refusals import refuses
from scipy import stats

from lit_prune.config.table import Claim
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.report import report
from lit_prune.report.statistics import holm
from lit_prune.report.verdicts import judge
from lit_prune.store import Store


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with every cell done, only to be read: filling it asks git for a commit 40 times."""
    return filled(tmp_path_factory.mktemp("complete"))


@pytest.fixture
def store(complete: Store, tmp_path: Path) -> Store:
    """The same, to be changed."""
    return Store(shutil.copytree(complete.root, tmp_path / "store"))


@pytest.fixture(scope="module")
def whole(complete: Store, tmp_path_factory: pytest.TempPathFactory) -> report.Report:
    return partly(complete, tmp_path_factory.mktemp("partly") / "store")


def test_tidy_has_every_cell_in_the_order_of_the_entries(whole: report.Report) -> None:
    frame, wanted = whole.tidy, requested()
    assert list(frame["key"]) == [entry.key for entry in wanted]
    assert list(zip(frame["row"], frame["seed"], strict=True)) == [(e.row, e.seed) for e in wanted]
    assert list(frame["distill.logit_loss"]) == [e.cell.distill.logit_loss for e in wanted]
    assert list(frame.loc[frame["reference"], "row"]) == ["pruned, not retrained", "teacher"]
    assert set(frame["wall_seconds"].dropna()) == {1.5}
    assert list(frame.columns).count("seed") == 1


def test_tidy_tells_states_apart(whole: report.Report) -> None:
    frame = whole.tidy.set_index(["row", "seed"])
    odd = {(MSE, 1): "failed", (COSINE, 2): "unfinished", (RKLD_ALONE, 0): "missing"}
    assert frame.loc[frame["state"] != "done", "state"].to_dict() == odd
    assert frame.loc[(MSE, 1), "error"] == "Diverged: <nan> at [step] and then some"
    assert frame.loc[(COSINE, 2), "error"] is None
    assert frame.loc[list(odd), "lm_loss"].isna().all()
    assert frame.loc[(KLD, 2), "lm_loss"] == 3.10


def test_a_label_that_merges_two_cells_is_refused(tmp_path: Path) -> None:
    twins = [dataclasses.replace(entry, row="same") for entry in requested(1)[:2]]
    with refuses("loss_ablation", "'same'", "seed 0"):
        report.tidy(TABLE, twins, Store(tmp_path))


def test_holm_by_hand() -> None:
    p = pd.Series([0.01, 0.04, math.nan, 0.03], index=list("abcd"))
    corrected = holm(p)
    assert corrected.drop("c").to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert math.isnan(corrected["c"])
    assert list(holm(pd.Series([0.6, 0.7]))) == [1.0, 1.0]


def test_summary_by_hand(complete: Store) -> None:
    summary = answer(complete).summary
    assert list(summary.index) == list(LOSSES)
    row = summary.loc[MSE]
    assert row["mean"] == pytest.approx((3.10 + 3.21 + 3.33) / 3)
    assert row["sd"] == pytest.approx(math.sqrt((0.11333**2 + 0.00333**2 + 0.11667**2) / 2), rel=1e-3)
    assert row["n"] == 3
    assert row["interval"] == pytest.approx(4.302653 * row["sd"] / math.sqrt(3))
    assert row["delta"] == pytest.approx((0.20 + 0.21 + 0.23) / 3)
    assert row["perplexity"] == pytest.approx(sum(map(math.exp, LOSSES[MSE])) / 3)
    assert (row["paper lm_loss"], row["paper perplexity"]) == (2.144, 9.007)
    assert summary.loc[[KLD, "teacher"], ["delta", "p"]].isna().all(axis=None)
    assert summary.loc["teacher", "mean"] == 2.5
    assert math.isnan(summary.loc[RKLD_ALONE, "paper lm_loss"])


def test_p_values_are_those_of_scipy_after_holm(complete: Store) -> None:
    p = answer(complete).summary["p"]
    # RKLD_ALONE differs from the baseline by the same 0.05 for every seed: no test, and not counted.
    raw = {row: stats.ttest_rel(LOSSES[row], LOSSES[KLD]).pvalue for row in (MSE, RKLD, COSINE, KLD_CE, CLM)}
    ordered = sorted(raw, key=raw.__getitem__)
    expected = itertools.accumulate(((5 - k) * raw[row] for k, row in enumerate(ordered)), max)
    assert p[ordered].to_list() == pytest.approx([min(1, value) for value in expected])
    assert math.isnan(p[RKLD_ALONE])


def test_differences_are_paired_over_the_seeds_both_rows_have(whole: report.Report) -> None:
    row = whole.summary.loc[MSE]
    assert row["n"] == 2
    assert row["delta"] == pytest.approx((0.20 + 0.23) / 2)
    assert row["mean"] - whole.summary.loc[KLD, "mean"] == pytest.approx(0.215)
    assert whole.summary.loc[COSINE, "delta"] == pytest.approx((0.10 + 0.20) / 2)


def test_verdicts(complete: Store) -> None:
    claims = [
        Claim(KLD, MSE, "Table 1: holds"),
        Claim(KLD, RKLD, "Table 1: fails"),
        Claim(KLD, COSINE, "Table 1: undecided"),
        Claim(KLD, RKLD_ALONE, "Table 1: the same difference for every seed"),
    ]
    verdicts = answer(complete, claims=tuple(claims)).verdicts.set_index("source")
    assert verdicts["verdict"].to_list() == ["holds", "fails", "undecided", "undecided"]
    line, test = verdicts.loc["Table 1: holds"], stats.ttest_rel(LOSSES[KLD], LOSSES[MSE])
    assert line["difference"] == pytest.approx(-0.64 / 3)
    assert (line["low"], line["high"]) == pytest.approx(tuple(test.confidence_interval()))
    tested = [stats.ttest_rel(LOSSES[KLD], LOSSES[row]).pvalue for row in (MSE, RKLD, COSINE)]
    assert verdicts["p"].to_list()[:3] == pytest.approx(holm(pd.Series(tested)).to_list())
    assert verdicts.loc["Table 1: fails", "difference"] == pytest.approx(0.31 / 3)
    same = verdicts.loc["Table 1: the same difference for every seed"]
    assert same["difference"] == pytest.approx(-0.05)
    assert same[["low", "high", "p"]].isna().all()
    assert (verdicts["n"] == 3).all()


def test_where_more_is_better_a_claim_holds_above_zero(complete: Store) -> None:
    claims = (Claim(KLD, MSE, ""), Claim(MSE, KLD, ""), Claim(MSE, KLD, "", tolerance=1.0))
    lower = answer(complete, claims=claims).verdicts
    higher = answer(complete, claims=claims, higher_is_better=("lm_loss",)).verdicts
    assert lower["verdict"].to_list() == ["holds", "fails", "holds"]
    assert higher["verdict"].to_list() == ["fails", "holds", "holds"]
    assert higher["claim"].to_list()[:2] == [f"{KLD} > {MSE}", f"{MSE} > {KLD}"]
    same = ["difference", "low", "high", "p", "n"]
    assert higher[same].equals(lower[same])
    assert higher.loc[1, "difference"] > 0


def test_a_claim_is_judged_by_its_own_metric(complete: Store) -> None:
    # Perplexity as if it were another measurement: lowest where the loss is highest, for COSINE always 1 less.
    claims = (
        Claim(KLD, MSE, ""),
        Claim(MSE, KLD, "", metric="perplexity"),
        Claim(COSINE, KLD, "", metric="perplexity"),
    )
    cells = report.tidy(TABLE, requested(), complete)
    cells["perplexity"] = 10 - cells["lm_loss"] ** 2
    cells.loc[cells["row"] == COSINE, "perplexity"] = cells.loc[cells["row"] == KLD, "perplexity"].to_numpy() - 1
    verdicts = judge(dataclasses.replace(TABLE, claims=claims), cells)
    assert verdicts["metric"].to_list() == ["lm_loss", "perplexity", "perplexity"]
    assert verdicts["verdict"].to_list() == ["holds", "holds", "undecided"]
    squares = [[10 - loss**2 for loss in LOSSES[row]] for row in (MSE, KLD)]
    test = stats.ttest_rel(*squares)
    assert verdicts.loc[1, "difference"] == pytest.approx((sum(squares[0]) - sum(squares[1])) / 3)
    assert (verdicts.loc[1, "low"], verdicts.loc[1, "high"]) == pytest.approx(tuple(test.confidence_interval()))
    # Holm over both tests of the table, whatever their metric.
    raw = [stats.ttest_rel(LOSSES[KLD], LOSSES[MSE]).pvalue, test.pvalue]
    first, second = sorted(raw)
    assert sorted(verdicts["p"].dropna()) == pytest.approx([2 * first, max(2 * first, second)])
    assert verdicts.loc[2, "difference"] == pytest.approx(-1)


def test_correction_can_take_a_verdict_back(complete: Store) -> None:
    alone = answer(complete, claims=(Claim(KLD, KLD_CE, ""),)).verdicts
    among = answer(complete, claims=(Claim(KLD, KLD_CE, ""), *(Claim(KLD, COSINE, ""),) * 6)).verdicts
    assert alone.loc[0, "p"] == pytest.approx(stats.ttest_rel(LOSSES[KLD], LOSSES[KLD_CE]).pvalue)
    assert among.loc[0, "p"] == pytest.approx(7 * alone.loc[0, "p"])
    assert (alone.loc[0, "verdict"], among.loc[0, "verdict"]) == ("holds", "undecided")


def test_a_claim_without_its_rows_was_not_run(complete: Store) -> None:
    tidy = answer(complete).tidy
    verdicts = judge(TABLE, tidy[tidy["row"] != KLD]).set_index("claim")["verdict"]
    about = [KLD in (claim.better, claim.worse) for claim in TABLE.claims]
    assert [verdict == "not run" for verdict in verdicts] == about


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    found = answer(filled(tmp_path, num_seeds=1), 1)
    assert (found.verdicts["verdict"] == "undecided").all()
    assert found.verdicts[["low", "high", "p"]].isna().all(axis=None)
    assert found.verdicts["difference"].notna().all()
    assert found.summary[["sd", "interval", "p"]].isna().all(axis=None)
    assert "n = 1" in shown(found, 100)


def test_rank_agreement_by_hand(complete: Store) -> None:
    # The paper, best first: KLD, KLD_CE, COSINE, RKLD, MSE. Here RKLD is first: 3 of the 10 pairs turn over.
    found = answer(complete).agreement
    assert found.n == 5
    assert found.tau == pytest.approx((7 - 3) / 10)
    assert found.smallest_p == pytest.approx(2 / math.factorial(5))
    assert found.p > found.smallest_p


def test_histories_are_those_of_done_cells(whole: report.Report) -> None:
    runs = whole.histories.groupby(["row", "seed"]).size()
    assert len(runs) == 3 * 7 - 3
    assert (runs == 2).all()
    assert (MSE, 1) not in runs.index
    assert not {"teacher", "pruned, not retrained"} & set(whole.histories["row"])
    assert list(whole.histories.columns[:3]) == ["row", "seed", "step"]


def test_report_says_what_it_depends_on(complete: Store) -> None:
    found = answer(complete)
    assert (found.corpus, found.teacher["fingerprint"], found.num_seeds) == ("0" * 64, "1" * 64, 3)
    assert found.teacher["model"] == "python-3.1M"
    assert found.commits == {"abc"}
    assert not found.mixed
    assert found.versions["pandas"] == pd.__version__
    assert found.cell.distill.logit_loss == "kld"


def test_mixed_commits_are_flagged(store: Store) -> None:
    before = shown(answer(store), 100)
    node = store.node(requested()[0].cell, "cell")
    node.finish(node.result, commit="def")
    found = answer(store)
    assert found.mixed
    assert "2 versions of the code: abc, def" in shown(found, 100)
    assert "versions of the code" not in before
