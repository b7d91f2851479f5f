"""The costs that Minitron prints, by hand and as recorded."""

from __future__ import annotations

import dataclasses

import pytest
from paths import ROOT

from lit_prune.cli.main import main
from lit_prune.models.published import LARGE, SMALL, TEACHER
from lit_prune.report import costs, paper_claims

LAYERS, VOCABULARY, HEAD, SEQ, TOKENS = 32, 256_000, 128, 4096, 1152 * 4096
SHAPES = {TEACHER: (6144, 48, 24576), LARGE: (4096, 48, 16384), SMALL: (3072, 24, 9216)}


def forward(name: str) -> int:
    """FLOPs of the forward passes of a step: 8 KV groups, an MLP of two matrices, attention to all positions."""
    hidden, heads, neurons = SHAPES[name]
    weights = 2 * hidden * neurons + hidden * HEAD * (2 * heads + 2 * 8)
    return TOKENS * (LAYERS * (2 * weights + 4 * heads * HEAD * SEQ) + 2 * hidden * VOCABULARY)


@pytest.fixture(scope="module")
def found() -> list[costs.Cost]:
    return costs.costs()


def test_every_number_by_hand(found):
    teacher, large, small = (3 * forward(name) for name in SHAPES)
    family, charged = teacher + large + small, large + small + 2 * forward(TEACHER)
    expected = [
        teacher, large, small, 3800 / 94, family / (teacher + (large + small) / 40), family / (teacher + charged / 40),
        family / (teacher + charged * 94 / 8000), 100 * (small + forward(TEACHER)) / small,
        100 * (small + forward(LARGE)) / small,
    ]  # fmt: skip
    assert [cost.computed for cost in found] == pytest.approx(expected)


def test_the_equal_compute_of_table_11_fails_and_the_others_hold(found):
    assert [cost.verdict for cost in found] == ["holds"] * 7 + ["fails"] * 2
    assert [round(cost.computed) for cost in found[7:]] == [224, 170]


def test_a_number_holds_up_to_half_a_unit_of_its_last_digit(found):
    one = dataclasses.replace(found[4], printed=1.75, tolerance=0.25)
    for computed, verdict in ((1.5, "holds"), (2.0, "holds"), (2.001, "fails"), (1.499, "fails")):
        assert dataclasses.replace(one, computed=computed).verdict == verdict


def test_the_record_is_what_is_computed_now(found, tmp_path):
    assert (ROOT / "experiments" / costs.RECORD).read_text() == costs.text(found)
    for recorded, cost in zip(costs.read(ROOT / "experiments"), found, strict=True):
        assert dataclasses.replace(recorded, computed=cost.computed) == cost
        assert recorded.computed == pytest.approx(cost.computed, rel=1e-5)
    assert costs.read(tmp_path) == []


def test_every_number_stands_in_the_ledger_of_claims(found):
    lines = paper_claims.read()
    places = {line.place for line in lines.itertuples() if "cost" in line.tables}
    assert places == {cost.source for cost in found}


@pytest.mark.parametrize("width", [80, 250])
def test_the_command_prints_paper_and_computed_side_by_side(found, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["cost"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if f"training step of {SMALL}" in line)
    assert all(part in line for part in ("1.2e+17", "1.19e+17", "5e+15", "holds"))
    assert max(map(len, lines)) <= width
    assert len(lines) <= (4 if width == 80 else 2) * len(found) + 2


def test_a_record_without_a_checkout_is_refused_before_anything_is_computed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lit_prune.cli.cost.RECORDS", tmp_path)
    assert main(["cost", "--record"]) == 2
    assert capsys.readouterr().err.startswith("error: --record:")
