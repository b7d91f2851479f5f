"""Parents: inherited fields, address, the student they provide, and refusals."""

from __future__ import annotations

import dataclasses

import pytest
from refusals import refuses

from lit_prune.config import Cell, Corpus, Profile, Teacher
from lit_prune.config.overrides import override, parent_of, parents_of, plain_of
from lit_prune.config.profiles import load_profile
from lit_prune.config.table import Claim, Table
from lit_prune.pipeline.expand import entries
from lit_prune.report.results_frame import tidy
from lit_prune.store import Store
from lit_prune.store.address import STAGES, identity, key

PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}
KEPT = {f"parent.{path}": value for path, value in WHOLE.items()}
CHAIN = {**KEPT, "parent.prune.intermediate_size": 0.75, "prune.intermediate_size": 0.5, "parent.distill.max_steps": 3}
"""48 neurons, then 36, then 18."""


# What a source is


def test_a_source_inherits_all_it_does_not_change_itself():
    cell = override(
        Cell(), {"parent.prune.num_hidden_layers": 0.8, "prune.num_hidden_layers": 3, "seed": 7, "distill.max_steps": 5}
    )
    plain = dataclasses.replace(cell, parent=None)
    assert parent_of(plain) is None
    assert parent_of(cell) == override(plain, {"prune.num_hidden_layers": 0.8})


def test_the_order_of_changes_and_calls_does_not_matter():
    first = override(override(Cell(), {"parent.seed": 5, "parent.parent.prune.num_hidden_layers": 5}), {"seed": 3})
    second = override(Cell(), {"seed": 3, "parent.parent.prune.num_hidden_layers": 5, "parent.seed": 5})
    assert parents_of(first) == parents_of(second)
    assert [cell.seed for cell in (first, *parents_of(first))] == [3, 5, 5]
    assert [cell.prune.num_hidden_layers for cell in (first, *parents_of(first))] == [None, None, 5]
    assert key(first) == key(second)


def test_a_later_change_of_a_source_takes_the_place_of_an_earlier_one():
    cell = override(
        override(Cell(), {"parent.distill.optimizer.lr": 0.5}), {"parent.distill": {"optimizer": {"lr": 0.25}}}
    )
    assert parent_of(cell).distill == override(cell, {"distill.optimizer.lr": 0.25}).distill
    assert override(cell, {"parent": {}}) == cell
    assert override(cell, {"parent": None}).parent is None
    assert parents_of(override(cell, {"parent.parent": {}, "parent.parent.seed": 4}))[1].seed == 4


def test_a_profile_names_a_source(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text("student: {layers: 3}\nsource:\n  student: {layers: 4, drop: []}\n  source: {}\nseeds: 2\n")
    cell = load_profile(str(path)).cell
    assert [c.prune.num_hidden_layers for c in (cell, *parents_of(cell))] == [3, 4, 4]
    assert plain_of(cell)["parent"] == {"prune.num_hidden_layers": 4, "prune.drop_layers": (), "parent": ()}


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"parent.prune.num_hiden_layers": 3}, "parent.prune.num_hiden_layers", ["'prune.num_hidden_layers'"]),
        ({"parent.parent.prune.hiden": 3}, "parent.parent.prune.hiden", []),
        ({"parent": 5}, "parent", [5]),
        ({"parent.parent": "all"}, "parent.parent", ["'all'"]),
        ({"parent.prune.num_hidden_layers": "three"}, "parent.prune.num_hidden_layers", ["'three'"]),
    ],
)
def test_a_source_is_strict_in_names_and_types(changes, field, values):
    with refuses(field, *values):
        override(Cell(), changes)


# Where it lies


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_measured_and_cut_depends_on_the_source_alone_text_and_teacher_do_not(stage):
    cell = override(PINNED, {"parent.prune.num_hidden_layers": 5})
    expected = "source" in STAGES[stage]
    for other in (PINNED, override(cell, {"parent.distill.max_steps": 9}), override(cell, {"parent.seed": 9})):
        assert (key(cell, stage) != key(other, stage)) == expected


def test_what_says_the_same_is_the_same_address_and_shows_the_source_whole():
    short = override(PINNED, {"parent.prune.num_hidden_layers": 5})
    long = override(PINNED, {"parent.seed": PINNED.seed, "parent.parent": None, "parent.prune.num_hidden_layers": 5})
    assert key(short) == key(long)
    assert identity(short, "cell")["source"] == identity(parent_of(short), "cell")
    assert key(parent_of(short)) == key(override(PINNED, {"prune.num_hidden_layers": 5}))


def test_rows_may_sweep_what_a_source_changes(tmp_path):
    table = Table(
        name="t", question="?", source="here", baseline="5",
        rows={str(n): {"parent.prune.num_hidden_layers": n} for n in (5, 4)},
        claims=(Claim("5", "4", "x"),),
        reference_rows={"teacher": {"parent": None}},
    )  # fmt: skip
    found = entries(table, Profile(PINNED), filters={"parent.prune.num_hidden_layers": 4}, num_seeds=1)
    assert [parent_of(entry.cell) and parent_of(entry.cell).prune.num_hidden_layers for entry in found] == [4, None]
    assert list(tidy(table, found, Store(tmp_path))["parent.prune.num_hidden_layers"]) == [4, None]
    (more, _) = entries(table, Profile(PINNED), add_rows={"parent.seed": 8}, filters={"parent.seed": 8}, num_seeds=1)
    assert parent_of(more.cell).seed == 8
