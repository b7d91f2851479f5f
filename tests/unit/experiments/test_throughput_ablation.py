"""The rows of throughput_ablation: their pruning, and the requests of a profile."""

from dataclasses import replace

import pytest

from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.experiments.throughput_ablation import TABLE
from lit_prune.models.shape import num_parameters, shape_of
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.validate import check
from lit_prune.pruning.shapes import config_of_student, teacher_config


@pytest.fixture(scope="module")
def first_of_rows(tmp_path_factory):
    profile = load_profile("quick")
    found = entries(TABLE.at(profile, tmp_path_factory.mktemp("store")), profile)
    return {entry.row: entry.cell for entry in reversed(found)}


def test_students_have_as_many_parameters_and_the_teacher_is_whole(first_of_rows):
    whole = teacher_config(first_of_rows["teacher"])
    for row, cell in first_of_rows.items():
        student = config_of_student(cell)
        if row == "teacher":
            assert shape_of(student) == shape_of(whole)
        elif row.startswith("depth"):
            assert shape_of(student) == replace(shape_of(whole), num_hidden_layers=3)
        else:
            assert shape_of(student).num_hidden_layers == shape_of(whole).num_hidden_layers
            assert shape_of(student).num_attention_heads == shape_of(whole).num_attention_heads
            assert num_parameters(student) == pytest.approx(1_967_424, rel=0.03)


def test_every_request_can_be_served_and_nothing_is_measured_to_choose_what_is_kept(first_of_rows):
    assert len(first_of_rows) == 7
    for cell in first_of_rows.values():
        check(cell)
        assert cell.prune.statistics(teacher_config(cell)) == frozenset()
        assert cell.evaluation.throughput.num_repeats % 2 == 0  # each of the two comes first as often as the other


def test_requests_grow_with_the_profile_and_take_its_precision(tmp_path):
    profile = load_profile("quick")
    longer = override(profile.cell, {"distill.seq_len": 512, "distill.precision": "bf16-mixed"})
    profile = replace(profile, cell=longer)
    speeds = {e.row: e.cell.evaluation.throughput for e in entries(TABLE.at(profile, tmp_path), profile)}
    prompts, answers = speeds["depth, batch 32, long prompts"], speeds["width, batch 1, long answers"]
    assert (prompts.batch_size, prompts.prompt_len, prompts.max_new_tokens, prompts.precision) == (
        32,
        128,
        32,
        "bf16-true",
    )
    assert (answers.batch_size, answers.prompt_len, answers.max_new_tokens) == (1, 32, 64)
    assert speeds["teacher"] == prompts
