"""The best row of a table, its distance to the next one, and cases the seeds do not decide."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import answered, toy

from lit_prune.render.answer import answer_line
from lit_prune.report import Report

ROWS = {name: {"prune.num_hidden_layers": place} for place, name in enumerate("abc", 3)}


def found(folder: Path, losses: dict[str, list[float]], higher: tuple[str, ...] = ()) -> Report:
    measured = {row: [{"lm_loss": loss} for loss in values] for row, values in losses.items()}
    return answered(folder, toy(ROWS, metrics=("lm_loss",), higher_is_better=higher), measured)


def test_the_best_row_is_told_apart_from_each_other_one(tmp_path: Path) -> None:
    report = found(tmp_path, {"a": [3.0, 3.1, 3.2], "b": [2.9, 3.01, 3.1], "c": [4.0, 4.2, 4.4]})
    best = report.best
    assert best is not None
    assert (best.row, best.runner_up, best.decided) == ("b", "a", True)
    assert best.value == pytest.approx(3.00333, abs=1e-5)
    # Differences of -0.1, -0.09 and -0.1: t = -0.096667 / (0.0057735 / sqrt(3)) = -29, p = 0.001187 of two degrees of
    # freedom; that against c is 0.0032, which Holm's method leaves and puts 2 p here.
    assert best.margin is not None
    assert best.margin.difference == pytest.approx(-0.096667, abs=1e-6)
    assert best.margin.p == pytest.approx(2 * 0.0011869, rel=1e-3)
    assert [text in answer_line(report) for text in ("b is best", "3.0033 nats/token", "0.0967 below a")] == [True] * 3
    assert list(report.ranked.index) == ["b", "a", "c", "teacher"]


def test_seeds_that_overlap_decide_nothing(tmp_path: Path) -> None:
    report = found(tmp_path, {"a": [3.0, 3.2], "b": [3.1, 3.05], "c": [4.0, 4.3]})
    best = report.best
    assert best is not None
    assert (best.row, best.decided) == ("b", False)
    assert "a" in best.rivals
    assert answer_line(report).startswith("Undecided: b ")


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    report = found(tmp_path, {"a": [3.0], "b": [2.0], "c": [4.0]})
    assert report.best is not None
    assert (report.best.row, report.best.rivals) == ("b", ("a", "c"))


def test_rows_that_are_equal_or_nearly_so_are_rivals(tmp_path: Path) -> None:
    equal = found(tmp_path / "equal", {"a": [3.0, 3.1], "b": [3.0, 3.1], "c": [4.0, 4.11]})
    assert equal.best is not None
    assert (equal.best.row, equal.best.rivals) == ("a", ("b",))
    # b is 0.005 above a beyond doubt, which is no difference of interest.
    near = found(tmp_path / "near", {"a": [3.0, 3.1], "b": [3.005, 3.10501], "c": [4.0, 4.11]})
    assert near.best is not None
    assert near.best.margin is not None
    assert near.best.margin.p < 0.01
    assert (near.best.row, near.best.rivals) == ("a", ("b",))


def test_where_seeds_change_nothing_the_sequences_decide(tmp_path: Path) -> None:
    table = toy(ROWS, metrics=("lm_loss",))
    losses = {"a": [3.0, 3.2, 3.4, 3.1], "b": [2.0, 2.3, 2.4, 2.1]}
    measured = {row: [{"lm_loss": sum(values) / 4}] * 2 for row, values in losses.items()}
    alone, apart = (answered(tmp_path / name, table, measured, sequences=kept) for name, kept in
                    (("alone", None), ("apart", losses)))  # fmt: skip
    assert alone.best is not None
    assert apart.best is not None
    assert (alone.best.row, alone.best.rivals) == ("b", ("a",))
    assert (apart.best.row, apart.best.decided, apart.best.over) == ("b", True, "sequences")
    assert apart.best.margin is not None
    assert (apart.best.margin.n, apart.best.margin.p) == (4, pytest.approx(2e-4))
    assert apart.best.margin.difference == pytest.approx(2.2 - 3.175)


def test_higher_is_better_where_the_table_says_so(tmp_path: Path) -> None:
    report = found(tmp_path, {"a": [3.0, 3.1], "b": [2.0, 2.1], "c": [4.0, 4.11]}, higher=("lm_loss",))
    assert report.best is not None
    assert (report.best.row, report.best.runner_up, report.best.decided) == ("c", "a", True)
    assert "1.0050 above a" in answer_line(report)
    assert list(report.ranked.index) == ["c", "a", "b", "teacher"]


def test_what_is_not_measured_is_no_answer(tmp_path: Path) -> None:
    assert found(tmp_path / "none", {"a": []}).best is None
    alone = found(tmp_path / "one", {"a": [3.0]}).best
    assert alone is not None
    assert (alone.row, alone.runner_up, alone.decided) == ("a", None, False)
