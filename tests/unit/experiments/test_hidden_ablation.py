"""The paper's layer pairs in models of another depth, and the deep teacher they need."""

import dataclasses

import pytest
from refusals import refuses

from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.experiments.hidden_ablation import (
    ATTENTION,
    BEST,
    FIELDS,
    IN_WORDS,
    PAPER,
    SQUARES,
    TABLE,
    TWO,
    here,
    states,
)
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.validate import check_models
from lit_prune.pruning.shapes import deep_teacher

PAIRS = ("29:13", "15:15", "23:15", "29:15", "30:15", "31:15", "28:12", "29:14", "30:14")


def absolute(pair, *depths):
    """A pair with its relative names in numbers."""
    return ":".join(
        str(depth - 1 - int(place.removeprefix("last").removeprefix("-") or 0)) if place.startswith("last") else place
        for place, depth in zip(pair.split(":"), depths, strict=True)
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_at_the_papers_depth_a_pair_is_itself(pair):
    assert absolute(here(pair, 32), 32, 16) == pair


@pytest.mark.parametrize(
    ("pair", "of_twelve"),
    zip(PAIRS, ("9:3", "5:5", "8:5", "9:5", "10:5", "11:5", "8:2", "9:4", "10:4"), strict=True),
)
def test_of_twelve_blocks_the_last_are_counted_from_the_end_and_others_by_their_part_of_the_depth(pair, of_twelve):
    """15:15 lies in the middle, 23:15 at three quarters."""
    assert absolute(here(pair, 12), 12, 6) == of_twelve


@pytest.mark.parametrize("blocks", [12, 16, 24, 28, 32, 40, 48])
def test_no_two_rows_are_the_same_at_any_depth(blocks):
    rows = [
        {field: [absolute(pair, blocks, blocks // 2) for pair in changes.get(field, [])] for field in FIELDS.values()}
        | {"embedding": changes.get("distill.match_embedding"), "loss": changes.get("distill.hidden_loss")}
        for changes in (states(row, blocks) for row in (*PAPER, *IN_WORDS))
    ]
    assert all(rows.count(row) == 1 for row in rows)


def test_the_table_asks_a_deep_teacher_and_says_which_blocks_it_compares(tmp_path):
    quick = load_profile("quick")
    table = TABLE.at(quick, tmp_path)
    assert "29:13 is last-2:last-2, 15:15 is 5:last, 23:15 is 8:last" in table.caveats[0]
    found = {entry.row: entry.cell for entry in entries(table, quick, num_seeds=1)}
    assert len(found) == 12 + 2 + 3 + 1
    for cell in found.values():
        assert cell.teacher == quick.deep_teacher
        check_models(cell)


def test_a_teacher_that_is_deep_enough_is_taken_as_it_is():
    quick = load_profile("quick")
    teacher, blocks = deep_teacher(quick, least=6)
    assert (teacher, blocks) == (quick.cell.teacher, 6)
    teacher, blocks = deep_teacher(quick, least=12)
    assert (teacher, blocks) == (quick.deep_teacher, 12)


def test_without_one_the_request_is_refused():
    quick = load_profile("quick")
    with refuses("teacher", 13, "python-3.1M", 6, 12):
        deep_teacher(quick, least=13)
    with refuses("teacher", 12, "python-3.1M", 6, "deep_teacher"):
        deep_teacher(dataclasses.replace(quick, deep_teacher=None), least=12)


def test_a_profile_gives_its_deep_teacher_by_name_or_by_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("deep_teacher:\n  model: some/where\n")
    assert load_profile(str(path)).deep_teacher.model == "some/where"
    path.write_text("deep_teacher:\n  model: null\n  pretraining:\n    layers: 14\n")
    profile = load_profile(str(path))
    assert deep_teacher(profile, least=12) == (profile.deep_teacher, 14)
    path.write_text("deep_teacher:\n  modle: some/where\n")
    with refuses("deep_teacher.modle", "'deep_teacher.model'"):
        load_profile(str(path))


def test_rows_of_states_differ_in_nothing_but_the_objective():
    assert override(load_profile("quick").cell, states("L_o(29:13) + L_emb", 12)).distill.match_layer_output == (
        "last-2:last-2",
    )
    assert all(field.startswith("distill.") for row in (*PAPER, *IN_WORDS) for field in states(row, 12))


def test_rows_of_several_layers_of_attention_and_of_another_loss():
    assert states(TWO, 32)["distill.match_layer_output"] == ["last-3:last-3", "last-2:last-2"]
    assert states(SQUARES, 32) == states(BEST, 32) | {"distill.hidden_loss": "mse"}
    assert states(ATTENTION, 32) == states(BEST, 32) | {"distill.match_attention": ["last-2:last-2"]}
