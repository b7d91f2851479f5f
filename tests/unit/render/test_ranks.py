"""Ranks over the steps, and the paper against ours: the drawn numbers, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from drawn import answered, toy

from lit_prune.config.table import Claim, Table
from lit_prune.render import ranks
from lit_prune.report import Report

POINTS = {row: {"distill.logit_loss": loss} for row, loss in (("A", "kld"), ("B", "mse"), ("C", "cosine"))}
COURSES = {
    "A": {0: 4.0, 10: 3.5, 20: 3.0},
    "B": {0: 5.0, 10: 3.5, 20: 3.2},
    "C": {0: 3.0, 10: 3.6, 20: 3.1},
}
FOUND = {row: [{"lm_loss": course[20]}] for row, course in COURSES.items()}


def course(losses: dict[str, dict[int, float]]) -> pd.DataFrame:
    lines = [(row, 0, step, loss, 1.0) for row, by_step in losses.items() for step, loss in by_step.items()]
    return pd.DataFrame(lines, columns=["row", "seed", "step", "lm_loss", "kd_loss"])


def test_ranks_at_each_validation_by_hand() -> None:
    found = ranks.ranks(course(COURSES))
    assert list(found) == ["A", "C", "B"]  # as they end
    assert found.to_numpy().tolist() == [[2, 1, 3], [1.5, 3, 1.5], [1, 2, 3]]


def test_the_mean_over_the_seeds_decides() -> None:
    other = course({"A": {0: 1.0, 10: 9.0, 20: 3.0}, "B": {0: 1.0, 10: 1.0, 20: 3.2}}).assign(seed=1)
    found = ranks.ranks(pd.concat([course(COURSES), other]))
    # A: 2.5, 6.25, 3.0; B: 3.0, 2.25, 3.2; C: 3.0, 3.6, 3.1.
    assert found["A"].to_list() == [1, 3, 1]
    assert found["B"].to_list() == [2.5, 1, 3]


def test_rows_that_end_early_and_validations_not_all_have_are_left_out() -> None:
    short = COURSES | {"short": {0: 1.0, 10: 1.0}, "late": {0: 6.0, 20: 2.0}}
    found = ranks.ranks(course(short))
    assert list(found) == ["late", "A", "C", "B"]
    assert list(found.index) == [0, 20]


@pytest.mark.parametrize("losses", [{}, {"A": {0: 1.0, 10: 2.0}}, {"A": {0: 1.0}, "B": {0: 2.0}}])
def test_no_ranks_of_one_row_or_one_validation(losses: dict[str, dict[int, float]]) -> None:
    assert ranks.ranks(course(losses)).empty


def claiming(folder: Path, *claims: Claim) -> Report:
    return answered(folder, toy(POINTS, claims=claims), FOUND, COURSES)


def test_a_ring_is_where_the_lines_of_a_claim_cross(tmp_path: Path) -> None:
    report = claiming(tmp_path, Claim("A", "C", ""), Claim("A", "B", ""), Claim("B", "C", ""))
    found = ranks.ranks(report.checks)
    # A and C: 2 and 1 at step 0, 1.5 and 3 at step 10: they meet at 2/5 of the way, at 2 - 0.2.
    # B and C: 3 and 1 at step 0, 1.5 and 3 at 10, and again 3 and 2 at 20: 1.5 to go of 2.5, at 1.5 + 0.6 * 1.5.
    assert [flip["step"] for flip in report.flips.to_dict("records")] == [10, 20]
    (a, c) = ranks.crossings(report, found)
    assert a == pytest.approx((4.0, 1.8))
    assert c == pytest.approx((16.0, 2.4))
    (axes,) = ranks.rank_lines(report).axes
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in rings] == [pytest.approx(a), pytest.approx(c)]


def test_every_row_is_named_at_the_end_and_the_first_is_on_top(tmp_path: Path) -> None:
    (axes,) = ranks.rank_lines(claiming(tmp_path)).axes
    named = {text.get_text(): text for text in axes.texts}
    assert {name: tuple(text.xy) for name, text in named.items()} == {"A": (20, 1), "C": (20, 2), "B": (20, 3)}
    assert axes.get_ylim() == (3.5, 0.5)
    heights = [named[row].xyann[1] for row in "ACB"]
    assert heights == sorted(heights, reverse=True)


def test_of_many_rows_the_baseline_the_best_and_those_of_claims_are_emphasised(tmp_path: Path) -> None:
    points = {f"row {k}": {"distill.alpha": float(k)} for k in range(12)}
    courses = {row: {0: 14.0 - k, 10: 3.0 + k} for k, row in enumerate(points)}
    found = {row: [{"lm_loss": 3.0}] for row in points}
    report = answered(tmp_path, toy(points, claims=(Claim("row 8", "row 9", ""),)), found, courses)
    (axes,) = ranks.rank_lines(report).axes
    widths = [line.get_linewidth() for line in axes.lines[:12]]
    vivid = [row for row, width in zip(ranks.ranks(report.checks), widths, strict=True) if width > 1]
    assert vivid == ["row 0", "row 1", "row 2", "row 8", "row 9"]
    assert {text.get_text() for text in axes.texts} == set(vivid)
    assert axes.get_title(loc="left") == "Grey: 7 other rows"
    assert list(axes.get_xticks()) == [0, 10]


def test_the_order_changes_where_two_rows_cross_and_not_where_a_tie_is_broken() -> None:
    assert ranks.order_changes(ranks.ranks(course(COURSES)))
    tie = {"A": {0: 4.0, 10: 3.0}, "B": {0: 4.0, 10: 3.1}, "C": {0: 5.0, 10: 3.2}}
    assert not ranks.order_changes(ranks.ranks(course(tie)))
    assert not ranks.order_changes(ranks.ranks(course({"A": {0: 4.0}})))


PAPER = {"A": {"lm_loss": 2.0}, "B": {"lm_loss": 2.1}, "C": {"lm_loss": 2.2}}


def beside(folder: Path, table: Table) -> pd.DataFrame:
    found = {"A": [3.0, 3.2], "B": [3.5, 3.7], "C": [3.3, 3.3]}
    report = answered(folder, table, {row: [{"lm_loss": loss} for loss in losses] for row, losses in found.items()})
    return ranks.beside_paper(report)


def test_the_paper_beside_ours_with_its_interval(tmp_path: Path) -> None:
    found = beside(tmp_path, toy(POINTS, paper=PAPER))
    assert found["paper"].to_list() == [2.0, 2.1, 2.2]
    assert found["ours"].to_list() == pytest.approx([3.1, 3.6, 3.3])
    # Of 3.0 and 3.2: 12.706 times the standard error, 0.1.
    assert found["interval"].to_list() == pytest.approx([1.2706, 1.2706, 0], abs=1e-4)


def test_nothing_beside_a_paper_of_two_values_or_of_one_for_all(tmp_path: Path) -> None:
    two = {row: PAPER[row] for row in "AB"}
    assert beside(tmp_path / "two", toy(POINTS, paper=two)).empty
    assert beside(tmp_path / "one", toy(POINTS, paper={row: {"lm_loss": 1.92} for row in PAPER})).empty
    assert beside(tmp_path / "none", toy(POINTS)).empty


def test_a_row_far_above_the_others_is_told_and_not_drawn(tmp_path: Path) -> None:
    found = {"A": [{"lm_loss": 3.0}], "B": [{"lm_loss": 3.1}], "C": [{"lm_loss": 9.0}]}
    (axes,) = ranks.paper_and_ours(answered(tmp_path, toy(POINTS, paper=PAPER), found)).axes
    assert {text.get_text() for text in axes.texts} == {"A", "B"}
    assert axes.get_title(loc="left") == "Beyond the scale: C (paper 2.200, here 9.0000)"
    assert math.isclose(axes.lines[-1].get_ydata().max(), 3.1)
