"""The answer of a table: its best row, the distance to the next one, and when the seeds do not decide it."""

from __future__ import annotations

import math
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


def test_a_difference_without_noise_is_decided_by_its_sign(tmp_path: Path) -> None:
    report = found(tmp_path / "apart", {"a": [3.0, 3.1], "b": [2.0, 2.1], "c": [4.0, 4.1]})
    assert report.best is not None
    assert report.best.decided
    assert math.isnan(report.best.margin.p if report.best.margin else 0)
    equal = found(tmp_path / "equal", {"a": [3.0, 3.1], "b": [3.0, 3.1], "c": [4.0, 4.1]})
    assert equal.best is not None
    assert (equal.best.row, equal.best.rivals) == ("a", ("b",))


def test_higher_is_better_where_the_table_says_so(tmp_path: Path) -> None:
    report = found(tmp_path, {"a": [3.0, 3.1], "b": [2.0, 2.1], "c": [4.0, 4.1]}, higher=("lm_loss",))
    assert report.best is not None
    assert (report.best.row, report.best.runner_up, report.best.decided) == ("c", "a", True)
    assert "1.0000 above a" in answer_line(report)
    assert list(report.ranked.index) == ["c", "a", "b", "teacher"]


def test_what_is_not_measured_is_no_answer(tmp_path: Path) -> None:
    assert found(tmp_path / "none", {"a": []}).best is None
    alone = found(tmp_path / "one", {"a": [3.0]}).best
    assert alone is not None
    assert (alone.row, alone.runner_up, alone.decided) == ("a", None, False)
