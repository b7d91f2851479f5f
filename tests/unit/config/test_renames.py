"""Former names of fields, values, columns and flags: accepted with a hint, and unchanged in addresses."""

import dataclasses
import json

import pandas as pd
import pytest
from paths import ROOT

from lit_prune.cli.process import execute
from lit_prune.config import Cell, Profile, Prune, renames
from lit_prune.config.overrides import build, override, parse_setting, plain_of
from lit_prune.config.profiles import load_profile
from lit_prune.config.renames import RenamedField, current_change, current_path, former_change, former_path
from lit_prune.config.schema import Pretraining
from lit_prune.store.address import canonical, key

FORMER = {
    "distill.steps": "distill.max_steps",
    "distill.optim.clip": "distill.optimizer.max_grad_norm",
    "student.kv_groups": "prune.num_key_value_heads",
    "importance.samples": "calibration.num_sequences",
    "evaluation.second.source": "evaluation.second_corpus.path",
    "teacher.correction.block": "teacher.finetune.seq_len",
    "teacher.pretraining.corpus.heldout": "teacher.pretraining.corpus.holdout_fraction",
    "source.source.student.layers": "parent.parent.prune.num_hidden_layers",
    "source": "parent",
}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_path_leads_to_the_field_and_back(former):
    assert current_path(former) == FORMER[former] == current_path(FORMER[former])
    assert former_path(FORMER[former]) == former


@pytest.mark.parametrize("path", ["distill.stepps", "nothing", "row", "seed", "teacher.model"])
def test_other_paths_stay(path):
    assert current_path(path) == path == former_path(path)


def test_a_profile_has_former_names_too():
    assert current_path("search.least", Profile) == "search_space.min_params"
    assert current_path("new_text.importance.samples", Profile) == "new_text.calibration.num_sequences"
    assert current_path("deep_teacher.pretraining.kv_heads", Profile) == (
        "deep_teacher.pretraining.num_key_value_heads"
    )


def test_a_setting_by_its_former_name_warns_once_of_the_new_one():
    with pytest.warns(RenamedField, match=r"distill\.steps is now distill\.max_steps") as hints:
        assert parse_setting("distill.steps=5") == ("distill.max_steps", 5)
    assert len(hints) == 1


def test_a_former_value_warns_too():
    with pytest.warns(RenamedField) as hints:
        assert current_change("student.blocks", "tail") == ("prune.layer_selection", "last")
    assert len(hints) == 2
    with pytest.warns(RenamedField):
        assert current_change("prune.head_merging", "opposite") == ("prune.head_merging", "reversed_sign")


@pytest.mark.filterwarnings("error")
def test_new_names_do_not_warn():
    assert parse_setting("distill.max_steps=5") == ("distill.max_steps", 5)
    assert parse_setting("prune.layer_selection=last") == ("prune.layer_selection", "last")


def test_a_section_is_given_by_former_names():
    with pytest.warns(RenamedField):
        path, value = current_change("student", {"layers": 3, "blocks": "lowest"})
    assert (path, value) == ("prune", {"num_hidden_layers": 3, "layer_selection": "lowest_score"})


def test_a_profile_of_the_version_before_is_the_same_profile(tmp_path):
    path = tmp_path / "former.yaml"
    path.write_text(
        "draws: 4\nsearch: {layers: [6], least: 0.5}\nsecond_text: {source: readmes, heldout: 0.4}\n"
        "student: {hidden: 0.5, blocks: tail}\ndistill: {steps: 7, optim: {warmup: 3}}\n"
        "new_text: {corpus: {heldout: 0.3}}\n"
    )
    with pytest.warns(RenamedField):
        profile = load_profile(str(path))
    assert profile.cell == override(
        Cell(),
        {
            "prune.hidden_size": 0.5, "prune.layer_selection": "last", "distill.max_steps": 7,
            "distill.optimizer.warmup_steps": 3,
        },
    )  # fmt: skip
    assert (profile.calibration_seeds, profile.second_corpus.holdout_fraction) == (4, 0.4)
    assert profile.search_space is not None
    assert (profile.search_space.num_hidden_layers, profile.search_space.min_params) == ((6,), 0.5)
    assert profile.new_text == (("corpus.holdout_fraction", 0.3),)


def test_addresses_are_made_of_the_first_names_and_values():
    cell = override(Cell(), {"prune.layer_selection": "last", "prune.num_hidden_layers": 3, "parent.seed": 1})
    plain = canonical(cell)
    assert set(plain) == {"corpus", "teacher", "importance", "student", "distill", "evaluation", "seed", "source"}
    assert (plain["student"]["blocks"], plain["student"]["layers"]) == ("tail", 3)
    assert plain["source"]["student"]["blocks"] == "tail"


@pytest.mark.parametrize("record", sorted((ROOT / "experiments").glob("*/*/record.json")), ids=lambda p: p.parts[-3])
def test_every_recorded_cell_is_read(record):
    recorded = json.loads(record.read_text())["cell"]
    cell = build(Cell, renames.current(recorded, Cell))
    assert key(cell) == key(build(Cell, plain_of(cell)))
    if "importance" in recorded:
        assert plain_of(cell)["calibration"]["num_sequences"] == recorded["importance"]["samples"]


def test_columns_are_read_by_their_names_now():
    frame = pd.DataFrame({"step": [1, 2], "clm": [3.0, None], "ce_loss": [None, 2.0], "student.blocks": ["tail", "x"]})
    found = renames.current_frame(frame)
    assert list(found) == ["step", "ce_loss", "prune.layer_selection"]
    assert found["ce_loss"].to_list() == [3.0, 2.0]
    assert found["prune.layer_selection"].to_list() == ["last", "x"]


def test_the_words_of_a_request_there_and_back():
    former = ("--only", "student.blocks=tail", "--also", "logit_loss=mse", "--seeds", "2")
    now = ("--filter", "prune.layer_selection=last", "--add-row", "logit_loss=mse", "--seeds", "2")
    assert renames.current_words(former) == now
    assert renames.former_words(now) == former
    assert former_change("prune.layer_selection", "last") == ("student.blocks", "tail")


def test_the_recipe_of_a_card_is_read_by_former_names():
    plain = {"steps": 3, "corpus": {"source": "python"}, "optim": {"warmup": 2}}
    recipe = build(Pretraining, renames.current(plain, Pretraining))
    assert (recipe.max_steps, recipe.corpus.path, recipe.optimizer.warmup_steps) == (3, "python", 2)


def test_no_section_has_a_field_by_the_former_name_of_another():
    for kind in (Prune, Cell, Profile, Pretraining):
        names = [field.name for field in dataclasses.fields(kind)]
        former = [renames.former_name(field) for field in dataclasses.fields(kind)]
        assert not {old for old, new in zip(former, names, strict=True) if old != new} & set(names)


def test_a_command_prints_each_hint_once(capsys):
    def parse(words):
        for word in words * 2:
            parse_setting(word)
        raise OSError("stop")

    assert execute(parse, ["distill.steps=5", "distill.w_clm=1.0"], {}) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("hint: ") for line in lines] == [True, True, False]
