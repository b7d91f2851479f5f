"""Addresses: the sections and fields that enter the address of a stage, and those that do not."""

from __future__ import annotations

import dataclasses

import pytest

from lit_prune import config
from lit_prune.config import Cell, Corpus, Pretraining, Prune, Teacher
from lit_prune.config.overrides import fields_of, override
from lit_prune.config.renames import former_name
from lit_prune.config.sections import begin_of, section_of
from lit_prune.store import address
from lit_prune.store.address import STAGES, canonical, identity, key

PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))

CHANGE_IN = {
    "corpus": {"corpus.holdout_fraction": 0.2},
    "teacher": {"teacher.fingerprint": "2" * 64},
    "importance": {"calibration.num_sequences": 7},
    "student": {"prune.intermediate_size": 0.5},
    "distill": {"distill.optimizer.lr": 0.5},
    "evaluation": {"evaluation.num_sequences": 7},
    "seed": {"seed": 7},
    "source": {"parent.prune.num_hidden_layers": 5},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("section", CHANGE_IN)
def test_an_address_changes_exactly_with_the_sections_its_stage_reads(stage, section):
    changed = override(PINNED, CHANGE_IN[section])
    assert changed != PINNED
    assert (key(changed, stage) != key(PINNED, stage)) == (section in STAGES[stage])


@pytest.mark.parametrize("part", [{"distill.train_last_layers": 1}, {"distill.lora.rank": 4}])
def test_results_that_charged_gradients_of_frozen_weights_are_not_found(part):
    partly = override(PINNED, part)
    now = identity(partly, "cell")
    assert now.pop("schema") == identity(PINNED, "cell")["schema"] | {"train_flops": 2}
    before = now | {"schema": identity(PINNED, "cell")["schema"]}
    assert key(partly) == address.digest(identity(partly, "cell")) != address.digest(before)
    assert identity(partly, "student") == identity(PINNED, "student")


def test_every_section_of_a_cell_is_read_by_the_cell():
    assert set(STAGES["cell"]) == set(CHANGE_IN) == {former_name(f) for f in dataclasses.fields(Cell)}


@pytest.mark.parametrize("path", fields_of(Cell))
def test_every_field_is_part_of_the_address(path):
    """But for places, which a fingerprint stands for; so no fingerprint here."""
    sections = {
        "teacher": ("pretraining", "finetune"),
        "distill": ("teacher_optimizer", "lora", "dynamic_loading"),
        "evaluation": ("second_corpus", "throughput", "tasks", "basin"),
    }
    optional = {
        f"{section}.{name}": begin_of(section_of(Cell, section), name)
        for section, names in sections.items()
        for name in names
    }
    base = override(Cell(), optional)
    value = base
    for part in path.split("."):
        value = getattr(value, part)
    assert key(override(base, {path: other_than(path, value)})) != key(base)


OTHER = {
    "prune.method": "shortgpt",
    "prune.batch_aggregation": "var",
    "prune.seq_aggregation": "l2",
    "prune.num_key_value_heads": 1,
    "prune.num_hidden_layers": 3,
    "prune.num_parameters": 0.5,
    "prune.drop_layers": [1],
    "parent": {"prune.num_hidden_layers": 3},
    "prune.head_merging": "paper",
    "prune.init": "random",
    "evaluation.second_corpus": {"path": "readmes"},
    "teacher.finetune.precision": "bf16-mixed",
    "distill.precision": "bf16-mixed",
    "distill.lora.quantize": "nf4",
    "calibration.precision": "bf16-mixed",
    "evaluation.precision": "bf16-mixed",
    "evaluation.throughput.precision": "bf16-true",
    "evaluation.tasks.names": ["piqa"],
    "distill.train_last_layers": 1,
    "distill.dynamic_loading.references": [1.0],
    "distill.lora.target_modules": ["q_proj"],
    "distill.match_mlp_input": ["0:0"],
    "distill.match_layer_output": ["0:0"],
    "distill.match_attention": ["0:0"],
    "distill.imitate": "parent",
    "distill.projection": "per_pair",
    "distill.mixture": 0.5,
    "distill.top_k": 100,
    "distill.max_tokens": 5,
    "distill.max_flops": 5.0,
    "corpus.max_tokens": 5,
    "corpus.bos": True,
    "teacher.pretraining.corpus.bos": True,
    "evaluation.second_corpus.bos": True,
    "corpus.loss_on": "assistant",
    "teacher.pretraining.corpus.loss_on": "assistant",
    "evaluation.second_corpus.loss_on": "assistant",
    "teacher.pretraining.corpus.max_tokens": 5,
    "evaluation.second_corpus.max_tokens": 5,
}
"""Another value of fields whose type does not tell one."""


def other_than(path, value):
    if path in OTHER:
        return OTHER[path]
    if path.endswith(".schedule_steps"):
        return 50
    if path.endswith(".algorithm"):
        return "sgd"
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.01
    return value + 1 if isinstance(value, int) else f"{value} and more"


def test_a_fingerprint_replaces_the_place():
    here, there = (
        Cell(
            corpus=Corpus(path=place, fingerprint="0" * 64),
            teacher=Teacher(model=place, fingerprint="1" * 64),
            prune=Prune(init_from=place, fingerprint="2" * 64),
        )
        for place in ("here", "there")
    )
    assert all(key(here, stage) == key(there, stage) for stage in STAGES)
    assert not {"here", "there"} & set(map(str, _leaves(identity(here, "cell"))))


def test_the_place_of_a_corpus_a_teacher_is_trained_on_does_not_matter():
    recipes = (Pretraining(corpus=Corpus(path=place, fingerprint="0" * 64)) for place in ("here", "there"))
    here, there = (Cell(teacher=Teacher(model=None, pretraining=recipe)) for recipe in recipes)
    assert key(here, "teacher") == key(there, "teacher")


@pytest.mark.parametrize("stage", ["tokens", "cell"])
def test_another_fingerprint_is_another_address(stage):
    assert key(override(PINNED, {"corpus.fingerprint": "f" * 64}), stage) != key(PINNED, stage)


@pytest.mark.parametrize("path", ["corpus.path", "teacher.model", "prune.init_from"])
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
    assert set(canonical(Prune())) == {"criterion", "batch", "seq", "hidden", "neurons", "heads"}
    assert canonical(Prune(init_from="small"))["model"] == "small"


def test_a_raised_schema_changes_its_own_stage_and_all_downstream(monkeypatch):
    before = {stage: key(PINNED, stage) for stage in STAGES}
    monkeypatch.setitem(address.SCHEMA, "importance", 99)
    changed = {stage for stage in STAGES if key(PINNED, stage) != before[stage]}
    assert changed == {"importance", "student", "cell"}


def test_a_stage_added_later_enters_addresses_downstream_once_it_is_raised(monkeypatch):
    assert "removals" not in identity(PINNED, "student")["schema"]
    before = {stage: key(PINNED, stage) for stage in STAGES}
    monkeypatch.setitem(address.SCHEMA, "removals", 2)
    changed = {stage for stage in STAGES if key(PINNED, stage) != before[stage]}
    assert changed == {"removals", "student", "cell"}


def test_stages_of_one_cell_have_different_addresses():
    assert len({key(PINNED, stage) for stage in STAGES}) == len(STAGES)
