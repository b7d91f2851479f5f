"""The rows of healing_ablation: equal parameters, equal FLOPs, and QLoRA where it can run."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from lit_prune.config.profiles import load_profile
from lit_prune.experiments.healing_ablation import TABLE
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.work import flops_of_token
from lit_prune.pruning.shapes import config_of_student

PRUNERS = ("width", "depth", "tail", "neurons")


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The table at quick, with or without bitsandbytes, and the cells of its rows."""
    found = importlib.util.find_spec

    def build(installed=True):
        spec = found("json") if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "bitsandbytes" else found(name))
        profile = load_profile("quick")
        table = TABLE.at(profile, tmp_path)
        return table, {entry.row: entry.cell for entry in entries(table, profile, num_seeds=1)}

    return build


def test_the_students_have_equally_many_parameters(built):
    _, cells = built()
    depth, *others = (num_parameters(config_of_student(cells[f"{pruner}, nothing"])) for pruner in ("depth", *PRUNERS))
    assert depth == 3_148_224 - 2 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512 + 2 * 192)
    assert others == pytest.approx([depth] * len(PRUNERS), rel=0.03)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("healer", ["LoRA", "QLoRA", "last layers", "CE"])
def test_rows_of_equal_flops_have_those_of_distillation_to_half_a_step(built, pruner, healer):
    _, cells = built()
    taught, row, same = cells[f"{pruner}, KD"], cells[f"{pruner}, {healer}, equal FLOPs"], cells[f"{pruner}, {healer}"]
    step, steps = flops_of_token(row), taught.distill.max_steps
    assert row.distill.max_steps * step == pytest.approx(steps * flops_of_token(taught), abs=step / 2)
    assert same.distill.max_steps == steps < row.distill.max_steps
    assert dataclasses.replace(row, distill=dataclasses.replace(row.distill, max_steps=steps)) == same


def test_without_bitsandbytes_qlora_its_claims_and_only_these_are_left_out(built):
    (whole, _), (partial, _) = built(), built(installed=False)
    assert [row for row in whole.rows if "QLoRA" not in row] == list(partial.rows)
    assert [claim for claim in whole.claims if not any("QLoRA" in row for row in claim.rows)] == [*partial.claims]
    assert len(whole.claims) == len(TABLE.claims)
    (caveat,) = set(partial.caveats) - set(whole.caveats)
    assert "bitsandbytes" in caveat
