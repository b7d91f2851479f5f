"""`lit-prune store`: what takes space, and what is freed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lit_prune.cli.store import main
from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.config.overrides import override
from lit_prune.store import Store
from lit_prune.store.address import CACHE, identity, key
from lit_prune.store.store import IDENTICAL
from lit_prune.store.usage import unneeded, usage

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
OTHER = dataclasses.replace(CELL, corpus=Corpus(fingerprint="2" * 64))
STAGES = ("tokens", "importance", "student", "cell")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two cells over different texts, each with its stages, of which the second one's cell is unfinished."""
    store = Store(tmp_path / "store")
    for cell in (CELL, OTHER):
        for stage in STAGES:
            with store.claim(cell, stage) as node:
                (node.folder / "file.bin").write_bytes(b"x" * 10_000)
                if (cell, stage) != (OTHER, "cell"):
                    node.finish({"value": 1})
    return store


def kept(store: Store) -> set[tuple[str, str]]:
    return {(one.kind, one.folder.name) for one in usage(store)}


def addresses(cell: Cell) -> set[tuple[str, str]]:
    return {(stage, key(cell, stage)) for stage in STAGES}


def test_every_node_is_listed_with_its_bytes(store):
    found = usage(store)
    assert kept(store) == addresses(CELL) | addresses(OTHER)
    assert all(one.num_bytes >= 10_000 for one in found)
    assert [one.folder.name for one in found if not one.done] == [key(OTHER)]


def test_what_a_kept_cell_is_computed_from_is_kept(store):
    assert {(one.kind, one.folder.name) for one in unneeded(store, [key(CELL)], [])} == addresses(OTHER)
    everything = unneeded(store, [], [])
    assert {(one.kind, one.folder.name) for one in everything} == addresses(CELL) | addresses(OTHER)


def test_a_recipe_keeps_its_stages_before_any_of_its_cells_is_begun(store):
    longer = override(OTHER, {"distill.max_steps": 7})
    freed = {(one.kind, one.folder.name) for one in unneeded(store, [], [identity(longer, "cell")])}
    assert freed == addresses(CELL) | {("cell", key(OTHER))}


def test_the_stages_of_a_parent_and_of_a_second_text_are_kept(store):
    chained = override(OTHER, {"parent": {}, "parent.corpus.fingerprint": CELL.corpus.fingerprint})
    assert unneeded(store, [key(OTHER)], [identity(chained, "cell")]) == []
    second = override(OTHER, {"evaluation.second_corpus.fingerprint": CELL.corpus.fingerprint})
    freed = unneeded(store, [key(OTHER)], [identity(second, "cell")])
    assert {(one.kind, one.folder.name) for one in freed} == addresses(CELL) - {("tokens", key(CELL, "tokens"))}


def test_a_cache_of_teacher_outputs_is_kept_for_an_unfinished_cell_only(store):
    for cell in (CELL, OTHER):
        sections = identity(cell, "cell")
        with store.hold(CACHE, {name: sections[name] for name in ("teacher", "corpus")}) as node:
            node.finish({"bytes": 1})
    freed = {one.folder for one in unneeded(store, [key(CELL), key(OTHER)], [])}
    corpora = {folder: Store(store.root).find(folder.name).config["corpus"] for folder in freed}
    assert [corpus["fingerprint"] for corpus in corpora.values()] == [CELL.corpus.fingerprint]


def test_a_note_of_identical_students_is_kept_with_the_cell_that_it_names(store):
    notes = {}
    for cell in (CELL, OTHER):
        with store.hold(IDENTICAL, {"files": key(cell)}) as node:
            notes[cell] = node.finish({"cell": key(cell)}) and node.key
    freed = {one.folder.name for one in unneeded(store, [key(CELL)], []) if one.kind == IDENTICAL}
    assert freed == {notes[OTHER]}


def test_gc_frees_what_is_not_needed_and_nothing_else(store, tmp_path, capsys):
    (store.root / "reports").mkdir()
    (store.root / "reports/page.html").write_text("page")
    words = ["gc", "--store", str(store.root), "--records", str(tmp_path / "none")]
    assert main(words) == 2  # nobody can be asked
    assert "--yes" in capsys.readouterr().err
    assert addresses(CELL) <= kept(store)
    assert main([*words, "--yes"]) == 0
    assert kept(store) == {("reports", "reports")}


def test_gc_keeps_what_another_process_holds(store, tmp_path):
    with store.claim(OTHER, "cell"):
        assert main(["gc", "--yes", "--store", str(store.root), "--records", str(tmp_path / "none")]) == 0
    assert kept(store) == {("cell", key(OTHER))}


@pytest.mark.parametrize(
    "words", [["gc", "no_such_table"], ["ls", "loss_ablation"], ["ls", "--store", "no such folder"]]
)
def test_a_bad_request_is_one_line_and_frees_nothing(words, store, capsys):
    assert main(["--store", str(store.root), "--yes", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert addresses(CELL) <= kept(store)


def test_ls_says_how_much_there_is_by_stage(store, capsys):
    assert main(["ls", "--store", str(store.root)]) == 0
    assert set(STAGES) <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
