"""`override`, the only way to change a cell: strict names and types."""

from __future__ import annotations

import dataclasses

import pytest
from refusals import refuses

from lit_prune.cli.fields import main
from lit_prune.config import Cell, ConfigError, Pretraining, Profile, Teacher
from lit_prune.config.overrides import build, fields_of, override, parse_setting, plain_of
from lit_prune.store.address import key

# Names and types


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("distill.stpes", "distill.max_steps"),
        ("distil.steps", "distill.max_steps"),
        ("distill.optimizer.lrr", "distill.optimizer.lr"),
        ("sed", "seed"),
        ("teacher.modle", "teacher.model"),
        ("teacher.pretraining.layres", "teacher.pretraining.num_hidden_layers"),
        ("teacher.pretrainin.layers", "teacher.pretraining.num_hidden_layers"),
        ("teacher.pretraining.optimizer.warmpu", "teacher.pretraining.optimizer.warmup_steps"),
    ],
)
def test_an_unknown_field_is_refused_with_its_whole_path_and_the_nearest_name(path, meant):
    with refuses(path, repr(meant), "lit-prune fields") as caught:
        override(Cell(), {path: 1})
    assert sum(f"{field!r}" in caught.value.problem for field in fields_of(Cell)) == 3


def test_the_command_that_an_unknown_field_names_lists_all(capsys):
    assert main([]) == 0
    listed = dict(line.strip().split(" = ") for line in capsys.readouterr().out.splitlines() if " = " in line)
    assert set(fields_of(Cell)) | {"seeds", "calibration_seeds", "search_space.num_hidden_layers"} <= set(listed)
    assert listed["distill.max_steps"] == str(Cell().distill.max_steps)


@pytest.mark.parametrize("name", ["distill", "distill.optimizer.lr"])
def test_a_section_and_a_field_are_explained_alone(name, capsys):
    assert main([name]) == 0
    listed = [line.split(" = ")[0].strip() for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert sorted(listed) == sorted(p for p in fields_of(Cell) if p == name or p.startswith(f"{name}."))


def test_an_unknown_section_is_refused_with_the_nearest_ones(capsys):
    assert main(["distil"]) == 2
    assert "'distill'" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", ".", "distill.", "seed.x", "teacher.model.x", "prune.init_from.x", "a.b"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with refuses(path, "unknown field"):
        override(Cell(), {path: 1})


def test_a_setting_of_other_methods_is_refused_with_their_names():
    with refuses("prune.sparsity", "unknown field of method minitron", "magnitude", "wanda"):
        override(Cell(), {"prune.sparsity": 0.5})


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("seed", "a", "integer"),
        ("distill.max_steps", 1.5, "integer"),
        ("distill.max_steps", True, "integer"),
        ("distill.max_steps", "100", "integer"),
        ("distill.optimizer.lr", "fast", "number"),
        ("distill.optimizer.lr", None, "number"),
        ("distill.optimizer.lr", float("nan"), "finite"),
        ("distill.optimizer.lr", float("inf"), "finite"),
        ("distill.match_embedding", 1, "boolean"),
        ("distill.match_embedding", "true", "boolean"),
        ("distill.alpha", "dynamite", "'dynamic'"),
        ("distill.alpha", "dynamite", "number"),
        ("distill.ce_weight", "balance", "'balanced'"),
        ("distill.projection", "none", "'per_pair'"),
        ("distill.alpha", True, "'dynamic'"),
        ("distill.match_mlp_input", "1:2", "array"),
        ("distill.precision", "16", "'32-true' or 'bf16-mixed'"),
        ("prune.batch_aggregation", "l3", "'l2', 'mean' or 'var'"),
        ("prune.hidden_size", "big", "integer or a valid number"),
        ("prune.hidden_size", True, "integer or a valid number"),
        ("corpus.path", 3, "string"),
        ("corpus.max_tokens", 0.5, "integer"),
        ("distill.optimizer", 3, "object"),
        ("distill", None, "object"),
        ("teacher.pretraining", "yes", "object"),
        ("teacher.pretraining.num_hidden_layers", "six", "integer"),
        ("teacher.pretraining.optimizer.lr", "fast", "number"),
        ("teacher.pretraining.corpus.holdout_fraction", "little", "number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_path_value_and_what_is_allowed(path, value, allowed):
    with refuses(path, allowed, repr(value)):
        override(Cell(), {path: value})


def test_an_item_of_a_tuple_is_named_by_its_place():
    with refuses("distill.match_mlp_input.1", 3):
        override(Cell(), {"distill.match_mlp_input": ["1:2", 3]})


def test_an_unknown_field_in_a_section_given_whole_is_refused():
    with refuses("distill.optimizer.momentum", "unknown field"):
        override(Cell(), {"distill.optimizer": {"lr": 1.0, "momentum": 0.9}})


# Changing


def test_override_changes_what_it_names_and_nothing_else():
    changed = override(Cell(), {"distill.optimizer.lr": 0.5, "prune.batch_aggregation": "var", "seed": 3})
    assert (changed.distill.optimizer.lr, changed.prune.batch_aggregation, changed.seed) == (0.5, "var", 3)
    back = {"distill.optimizer.lr": 1e-3, "prune.batch_aggregation": "l2", "seed": 0}
    assert changed != Cell()
    assert override(changed, back) == Cell()


def test_override_does_not_touch_what_it_is_given():
    given = Cell()
    override(given, {"seed": 3, "teacher.pretraining.num_hidden_layers": 2})
    assert given == Cell()


def test_build_is_the_inverse_of_plain_of():
    changes = {"distill.match_mlp_input": ["29:13"], "teacher.pretraining.seed": 4, "distill.alpha": "dynamic"}
    cell = override(Cell(), changes)
    assert build(Cell, plain_of(cell)) == cell
    assert build(Profile, {"cell": plain_of(cell), "seeds": 5}) == Profile(cell, 5)


@pytest.mark.parametrize(
    ("path", "value", "kept"),
    [
        ("distill.optimizer.lr", 1, 1.0),
        ("distill.alpha", 2, 2.0),
        ("distill.alpha", "dynamic", "dynamic"),
        ("distill.match_layer_output", ["1:1", "last:last"], ("1:1", "last:last")),
        ("prune.hidden_size", 1, 1),
        ("prune.hidden_size", 1.0, 1.0),
        ("prune.hidden_size", None, None),
        ("corpus.max_tokens", None, None),
    ],
)
def test_values_take_the_type_of_their_field(path, value, kept):
    section, name = path.rsplit(".", 1)[0], path.rsplit(".", 1)[1]
    cell = override(Cell(), {path: value})
    for part in section.split("."):
        cell = getattr(cell, part)
    assert getattr(cell, name) == kept
    assert type(getattr(cell, name)) is type(kept)


def test_a_whole_number_for_a_float_field_has_the_same_address():
    assert key(override(Cell(), {"distill.ce_weight": 1})) == key(override(Cell(), {"distill.ce_weight": 1.0}))


def test_a_count_and_a_share_are_different_sizes():
    assert key(override(Cell(), {"prune.hidden_size": 1})) != key(override(Cell(), {"prune.hidden_size": 1.0}))


def test_the_first_change_below_pretraining_starts_from_its_defaults():
    changes = {"teacher.pretraining.optimizer.lr": 0.5, "teacher.pretraining.corpus.holdout_fraction": 0.3}
    default = Pretraining()
    assert override(Cell(), changes).teacher.pretraining == dataclasses.replace(
        default,
        optimizer=dataclasses.replace(default.optimizer, lr=0.5),
        corpus=dataclasses.replace(default.corpus, holdout_fraction=0.3),
    )


def test_pretraining_is_reached_from_any_node_that_has_it():
    two_layers = dataclasses.replace(Pretraining(), num_hidden_layers=2)
    assert override(Teacher(), {"pretraining.num_hidden_layers": 2}).pretraining == two_layers
    assert override(Pretraining(), {"num_hidden_layers": 2}) == two_layers
    with refuses("pretraining.num_hidden_layers", "unknown field"):
        override(Pretraining(), {"pretraining.num_hidden_layers": 2})


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("distill.optimizer.lr=1e-3", "distill.optimizer.lr", 1e-3),
        ("a=1E+3", "a", 1000.0),
        ("a=-.5", "a", -0.5),
        ("a=3", "a", 3),
        ("a=1_000", "a", 1000),
        ("a=null", "a", None),
        ("a=", "a", None),
        ("a=true", "a", True),
        ("a=False", "a", False),
        ("a=[1, 2.5, x]", "a", [1, 2.5, "x"]),
        ("a=[1e-3]", "a", [1e-3]),
        ("a=[29:13]", "a", ["29:13"]),
        ("a=29:13", "a", "29:13"),
        ("a=last-2:last-2", "a", "last-2:last-2"),
        ("a='1e-3'", "a", "1e-3"),
        ("a='20220301'", "a", "20220301"),
        ("a=2024-01-01", "a", "2024-01-01"),
        ("a=no", "a", "no"),
        ("a=dynamic", "a", "dynamic"),
        ("a=b=c", "a", "b=c"),
        (" a = 3 ", "a", 3),
    ],
)
def test_parse_setting_reads_what_a_researcher_writes(text, path, value):
    parsed = parse_setting(text)
    assert parsed == (path, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["distill.max_steps", "=3", " =3", "a={", "a=[1", "a=!!python/object:os.system x"])
def test_a_setting_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="--set") as caught:
        parse_setting(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("distill.max_steps", -1, ">= 0"), ("distill.batch_size", 0, ">= 1"), ("distill.seq_len", 1, ">= 2"),
        ("distill.temperature", 0.0, "> 0"), ("distill.kd_weight", -1.0, ">= 0"),
        ("distill.ce_weight", -0.5, ">= 0 or 'balanced'"), ("distill.mixture", 0.0, "> 0"),
        ("distill.mixture", 1.0, "< 1"), ("distill.max_tokens", 0, ">= 1"), ("distill.lora.dropout", 1.0, "< 1"),
        ("corpus.holdout_fraction", 0.5, "< 0.5"), ("corpus.holdout_fraction", 0.0, "> 0"),
        ("corpus.max_tokens", 0, ">= 1"), ("evaluation.second_corpus.max_tokens", 0, ">= 1"),
        ("teacher.pretraining.vocab_size", 256, ">= 257"), ("teacher.finetune.optimizer.beta1", 1.5, "< 1"),
        ("calibration.num_sequences", 0, ">= 1"), ("seed", -1, ">= 0"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_the_rule(path, value, rule):
    for field in (path, f"parent.{path}"):
        with refuses(field, rule, repr(value)):
            override(Cell(), {field: value})


@pytest.mark.parametrize("name", ["seeds", "calibration_seeds"])
def test_a_profile_has_one_seed_at_least(name):
    with refuses(name, ">= 1", 0):
        override(Profile(Cell()), {name: 0})
