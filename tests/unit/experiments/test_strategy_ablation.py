"""The controls of strategy_ablation: equal steps, equal FLOPs, another teacher, and the kept heads."""

from __future__ import annotations

import dataclasses

import pytest

from lit_prune.config.overrides import parent_of
from lit_prune.config.profiles import load_profile
from lit_prune.experiments.strategy_ablation import BY_MIDDLE, CHAINED, EQUAL_FLOPS, TABLE, TWICE, kept_in_words
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.work import flops_of_token
from lit_prune.pruning.shapes import teacher_config
from lit_prune.store.address import key


@pytest.fixture(scope="module", params=["quick", "laptop"])
def cells(request, tmp_path_factory):
    profile = load_profile(request.param)
    table = TABLE.at(profile, tmp_path_factory.mktemp("store"))
    return {entry.row: entry.cell for entry in entries(table, profile, num_seeds=1)}


def test_cross_entropy_has_the_flops_of_distillation_to_half_a_step(cells):
    kd, alone = cells["pruned + KD"], cells[EQUAL_FLOPS]
    step = flops_of_token(alone)
    assert alone.distill.max_steps * step == pytest.approx(kd.distill.max_steps * flops_of_token(kd), abs=step / 2)
    assert not alone.distill.needs_teacher
    assert alone.prune == kd.prune


def test_the_control_has_the_steps_of_the_chain_and_no_middle_model(cells):
    chained, control = cells[CHAINED], cells[TWICE]
    assert control.distill.max_steps == chained.distill.max_steps + parent_of(chained).distill.max_steps
    assert dataclasses.replace(control, distill=cells["pruned + KD"].distill) == cells["pruned + KD"]


def test_the_middle_model_is_the_same_whoever_teaches_its_student(cells):
    chained, other = cells[CHAINED], cells[BY_MIDDLE]
    assert key(parent_of(chained)) == key(parent_of(other))
    assert (chained.distill.imitate, other.distill.imitate) == ("teacher", "parent")
    assert chained.prune == other.prune


def test_heads_that_a_share_cannot_have_are_said():
    quick = load_profile("quick").cell
    requested = dataclasses.replace(quick.prune, num_attention_heads=0.5)
    assert "4 of 6 heads (the nearest allowed to 0.5)" in kept_in_words(requested, teacher_config(quick))
    allowed = dataclasses.replace(quick.prune, num_attention_heads=4)
    assert "4 of 6 heads;" in kept_in_words(allowed, teacher_config(quick))
