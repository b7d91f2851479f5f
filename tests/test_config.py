"""Addresses, and the one way to change a cell: strict names and types, identity by content."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from lit_prune import address, config
from lit_prune.address import STAGES, canonical, identity, key
from lit_prune.config import Cell, ConfigError, Corpus, Pretraining, Profile, Student, Teacher
from lit_prune.settings import (
    build,
    fields_of,
    load_profile,
    override,
    parse_setting,
    plain_of,
    profiles_folder,
)

# The addresses of PINNED. They may change only together with a raised SCHEMA, or with a changed default; a
# field that is added with `later`, a new loss or a moved file must leave them as they are.
GOLDEN = {
    "teacher": "2dfc55923374",
    "tokens": "6e11a1f6c431",
    "importance": "41ded145c5fd",
    "head_channels": "78ae13d39521",
    "preactivations": "3fc839e70c7c",
    "distances": "406fe52e61bf",
    "removals": "41ef3a43a840",
    "gradients": "eebadc331836",
    "student": "612bcbed7b31",
    "cell": "1c07a3717540",
}
PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))

CHANGE_IN = {
    "corpus": {"corpus.heldout": 0.2},
    "teacher": {"teacher.fingerprint": "2" * 64},
    "importance": {"importance.samples": 7},
    "student": {"student.neurons": 0.5},
    "distill": {"distill.optim.lr": 0.5},
    "evaluation": {"evaluation.blocks": 7},
    "seed": {"seed": 7},
    "source": {"source.student.layers": 5},
}


def refused(node, changes) -> str:
    with pytest.raises(ConfigError) as caught:
        override(node, changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Names and types


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("distill.stpes", "distill.steps"),
        ("distil.steps", "distill.steps"),
        ("distill.optim.lrr", "distill.optim.lr"),
        ("sed", "seed"),
        ("teacher.modle", "teacher.model"),
        ("teacher.pretraining.layres", "teacher.pretraining.layers"),
        ("teacher.pretrainin.layers", "teacher.pretraining.layers"),
        ("teacher.pretraining.optim.warmpu", "teacher.pretraining.optim.warmup"),
    ],
)
def test_an_unknown_field_is_refused_with_its_whole_path_and_the_nearest_name(path, meant):
    message = refused(Cell(), {path: 1})
    assert message.startswith(f"unknown field {path!r}; perhaps you meant {meant!r}; there are: ")
    section = path.partition(".")[0] + "."
    allowed = [field for field in fields_of(Cell) if field.startswith(section)] or fields_of(Cell)
    assert message.endswith("there are: " + ", ".join(sorted(allowed)))


@pytest.mark.parametrize("path", ["", ".", "distill.", "seed.x", "teacher.model.x", "student.model.x", "a.b"])
def test_a_path_that_leads_nowhere_is_refused(path):
    assert refused(Cell(), {path: 1}).startswith(f"unknown field {path!r}")


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("seed", "a", "integer"),
        ("distill.steps", 1.5, "integer"),
        ("distill.steps", True, "integer"),
        ("distill.steps", "100", "integer"),
        ("distill.optim.lr", "fast", "number"),
        ("distill.optim.lr", None, "number"),
        ("distill.optim.lr", float("nan"), "finite"),
        ("distill.optim.lr", float("inf"), "finite"),
        ("distill.embedding", 1, "boolean"),
        ("distill.embedding", "true", "boolean"),
        ("distill.alpha", "dynamite", "'dynamic'"),
        ("distill.alpha", "dynamite", "number"),
        ("distill.alpha", True, "'dynamic'"),
        ("distill.mlp_input", "1:2", "array"),
        ("distill.precision", "16", "'32-true' or 'bf16-mixed'"),
        ("student.batch", "l3", "'l2', 'mean' or 'var'"),
        ("student.hidden", "big", "integer or a valid number"),
        ("student.hidden", True, "integer or a valid number"),
        ("corpus.source", 3, "string"),
        ("corpus.max_tokens", 0.5, "integer"),
        ("distill.optim", 3, "object"),
        ("distill", None, "object"),
        ("teacher.pretraining", "yes", "object"),
        ("teacher.pretraining.layers", "six", "integer"),
        ("teacher.pretraining.optim.lr", "fast", "number"),
        ("teacher.pretraining.corpus.heldout", "little", "number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_path_value_and_what_is_allowed(path, value, allowed):
    message = refused(Cell(), {path: value})
    assert message.startswith(f"{path}: should be ")
    assert allowed in message
    assert message.endswith(f", not {value!r}")


def test_an_item_of_a_tuple_is_named_by_its_place():
    assert refused(Cell(), {"distill.mlp_input": ["1:2", 3]}).startswith("distill.mlp_input.1: ")


def test_an_unknown_field_in_a_section_given_whole_is_refused():
    message = refused(Cell(), {"distill.optim": {"lr": 1.0, "momentum": 0.9}})
    assert message.startswith("unknown field 'distill.optim.momentum'")


# Changing


def test_override_changes_what_it_names_and_nothing_else():
    changed = override(Cell(), {"distill.optim.lr": 0.5, "student.batch": "var", "seed": 3})
    assert (changed.distill.optim.lr, changed.student.batch, changed.seed) == (0.5, "var", 3)
    back = {"distill.optim.lr": 1e-3, "student.batch": "l2", "seed": 0}
    assert changed != Cell()
    assert override(changed, back) == Cell()


def test_override_does_not_touch_what_it_is_given():
    given = Cell()
    override(given, {"seed": 3, "teacher.pretraining.layers": 2})
    assert given == Cell()


def test_build_is_the_inverse_of_plain_of():
    changes = {"distill.mlp_input": ["29:13"], "teacher.pretraining.seed": 4, "distill.alpha": "dynamic"}
    cell = override(Cell(), changes)
    assert build(Cell, plain_of(cell)) == cell
    assert build(Profile, {"cell": plain_of(cell), "seeds": 5}) == Profile(cell, 5)


@pytest.mark.parametrize(
    ("path", "value", "kept"),
    [
        ("distill.optim.lr", 1, 1.0),
        ("distill.alpha", 2, 2.0),
        ("distill.alpha", "dynamic", "dynamic"),
        ("distill.block_output", ["1:1", "last:last"], ("1:1", "last:last")),
        ("student.hidden", 1, 1),
        ("student.hidden", 1.0, 1.0),
        ("student.hidden", None, None),
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
    assert key(override(Cell(), {"distill.w_clm": 1})) == key(override(Cell(), {"distill.w_clm": 1.0}))


def test_a_count_and_a_share_are_different_sizes():
    assert key(override(Cell(), {"student.hidden": 1})) != key(override(Cell(), {"student.hidden": 1.0}))


def test_the_first_change_below_pretraining_starts_from_its_defaults():
    changes = {"teacher.pretraining.optim.lr": 0.5, "teacher.pretraining.corpus.heldout": 0.3}
    default = Pretraining()
    assert override(Cell(), changes).teacher.pretraining == dataclasses.replace(
        default,
        optim=dataclasses.replace(default.optim, lr=0.5),
        corpus=dataclasses.replace(default.corpus, heldout=0.3),
    )


def test_pretraining_is_reached_from_any_node_that_has_it():
    two_layers = dataclasses.replace(Pretraining(), layers=2)
    assert override(Teacher(), {"pretraining.layers": 2}).pretraining == two_layers
    assert override(Pretraining(), {"layers": 2}) == two_layers
    assert refused(Pretraining(), {"pretraining.layers": 2}).startswith("unknown field 'pretraining.layers'")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("distill.optim.lr=1e-3", "distill.optim.lr", 1e-3),
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


@pytest.mark.parametrize("text", ["distill.steps", "a={", "a=[1", "a=!!python/object:os.system x"])
def test_a_setting_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="--set") as caught:
        parse_setting(text)
    assert "\n" not in str(caught.value)


# Profiles


def written(folder, text):
    path = folder / "profile.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile_is_the_default_cell_with_its_changes(tmp_path):
    text = "seeds: 5\ndistill:\n  mlp_input: [29:13]\n  optim: {lr: 1e-4}\nstudent: {hidden: null}\n"
    changes = {"distill.mlp_input": ["29:13"], "distill.optim.lr": 1e-4, "student.hidden": None}
    assert load_profile(written(tmp_path, text)) == Profile(override(Cell(), changes), 5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("distill: {stpes: 3}", "perhaps you meant 'distill.steps'"),
        ("distil: {steps: 3}", "perhaps you meant 'distill.steps'"),
        ("distill: {steps: many}", "distill.steps: should be a valid integer, not 'many'"),
        ("seeds: many", "seeds: should be a valid integer, not 'many'"),
        ("distill:", "distill: should be an object, not None"),
        ("", "a mapping of sections"),
        ("- 1", "a mapping of sections"),
        ("1: {2: 3}", "unknown field '1.2'"),
        ("distill: {", "cannot be read as YAML"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(tmp_path, text, part):
    with pytest.raises(ConfigError) as caught:
        load_profile(written(tmp_path, text))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(profiles_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_profiles_load_by_name(path):
    assert load_profile(path.stem).seeds >= 1


def test_an_unknown_profile_is_refused():
    with pytest.raises(ConfigError, match="unknown profile 'no-such-profile'"):
        load_profile("no-such-profile")


# Identity


@pytest.mark.parametrize("stage", STAGES)
def test_golden_addresses(stage):
    assert key(PINNED, stage) == GOLDEN[stage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("section", CHANGE_IN)
def test_an_address_changes_exactly_with_the_sections_its_stage_reads(stage, section):
    changed = override(PINNED, CHANGE_IN[section])
    assert changed != PINNED
    assert (key(changed, stage) != key(PINNED, stage)) == (section in STAGES[stage])


def test_every_section_of_a_cell_is_read_by_the_cell():
    assert set(STAGES["cell"]) == set(CHANGE_IN) == {f.name for f in dataclasses.fields(Cell)}


@pytest.mark.parametrize("path", fields_of(Cell))
def test_every_field_is_part_of_the_address(path):
    """But for places, which a fingerprint stands for; so no fingerprint here."""
    base = override(Cell(), {"teacher.pretraining.seed": 0, "evaluation.second.heldout": 0.1})
    value = base
    for part in path.split("."):
        value = getattr(value, part)
    assert key(override(base, {path: other_than(path, value)})) != key(base)


def other_than(path, value):
    choices = {
        "student.batch": "var",
        "student.seq": "l2",
        "student.kv_groups": 1,
        "student.layers": 3,
        "student.parameters": 0.5,
        "student.drop": [1],
        "source": {"student.layers": 3},
        "student.head_residual": "paper",
        "student.weights": "random",
        "evaluation.second": {"source": "readmes"},
        "distill.precision": "bf16-mixed",
        "distill.mlp_input": ["0:0"],
        "distill.block_output": ["0:0"],
        "corpus.max_tokens": 5,
        "teacher.pretraining.corpus.max_tokens": 5,
        "evaluation.second.max_tokens": 5,
    }
    if path in choices:
        return choices[path]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value} and more"


def test_a_fingerprint_replaces_the_place():
    here, there = (
        Cell(
            corpus=Corpus(source=place, fingerprint="0" * 64),
            teacher=Teacher(model=place, fingerprint="1" * 64),
            student=Student(model=place, fingerprint="2" * 64),
        )
        for place in ("here", "there")
    )
    assert all(key(here, stage) == key(there, stage) for stage in STAGES)
    assert not {"here", "there"} & set(map(str, _leaves(identity(here, "cell"))))


def test_the_place_of_a_corpus_a_teacher_is_trained_on_does_not_matter():
    recipes = (Pretraining(corpus=Corpus(source=place, fingerprint="0" * 64)) for place in ("here", "there"))
    here, there = (Cell(teacher=Teacher(model=None, pretraining=recipe)) for recipe in recipes)
    assert key(here, "teacher") == key(there, "teacher")


@pytest.mark.parametrize("stage", ["tokens", "cell"])
def test_another_fingerprint_is_another_address(stage):
    assert key(override(PINNED, {"corpus.fingerprint": "f" * 64}), stage) != key(PINNED, stage)


@pytest.mark.parametrize("path", ["corpus.source", "teacher.model", "student.model"])
def test_a_fingerprint_does_not_outlive_the_place_it_was_taken_of(path):
    section, name = path.split(".")
    pinned = override(override(Cell(), {path: "old"}), {f"{section}.fingerprint": "0" * 64})
    assert getattr(override(pinned, {path: "old"}), section).fingerprint == "0" * 64
    moved = getattr(override(pinned, {path: "new"}), section)
    assert (getattr(moved, name), moved.fingerprint) == ("new", None)


def _leaves(plain):
    if isinstance(plain, dict):
        return [leaf for value in plain.values() for leaf in _leaves(value)]
    return [plain]


@dataclasses.dataclass(frozen=True)
class Grown:
    """A section as it looks after a field was added."""

    old: int = 1
    new: str | None = config.later(None, noop=None)
    other: float = config.later(0.5, noop=0.0)


def test_a_declared_noop_is_left_out_and_a_default_is_not():
    assert canonical(Grown()) == {"old": 1, "other": 0.5}
    assert canonical(Grown(other=0.0)) == {"old": 1}
    assert canonical(Grown(new="x", other=0.0)) == {"old": 1, "new": "x"}


def test_declared_noops_of_the_sections_are_left_out():
    assert set(canonical(Student())) == {"criterion", "batch", "seq", "hidden", "neurons", "heads"}
    assert canonical(Student(model="small"))["model"] == "small"


def test_a_raised_schema_changes_its_own_stage_and_all_downstream(monkeypatch):
    monkeypatch.setitem(address.SCHEMA, "importance", 99)
    changed = {stage for stage in STAGES if key(PINNED, stage) != GOLDEN[stage]}
    assert changed == {"importance", "student", "cell"}


def test_a_stage_added_later_enters_addresses_downstream_once_it_is_raised(monkeypatch):
    assert "removals" not in identity(PINNED, "student")["schema"]
    monkeypatch.setitem(address.SCHEMA, "removals", 2)
    changed = {stage for stage in STAGES if key(PINNED, stage) != GOLDEN[stage]}
    assert changed == {"removals", "student", "cell"}


def test_stages_of_one_cell_have_different_addresses():
    assert len({key(PINNED, stage) for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize("module", ["config", "registry", "grid", "store", "execution"])
def test_what_is_asked_imports_no_torch(module):
    code = f"import sys, lit_prune.{module}; print({{'torch', 'lightning'}} & set(sys.modules))"
    root = Path(config.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
