"""Guarantees of the store: a result means done, it is found by its address, errors have one line."""

from __future__ import annotations

import pytest
from process import whole_files
from refusals import refuses

from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.config.overrides import override
from lit_prune.store import Node, Store
from lit_prune.store.address import STAGES, identity, key
from lit_prune.store.store import commits_of

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


# Results


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_lies_at_its_stage_and_address(store, stage):
    assert store.node(CELL, stage).folder == store.root / stage / key(CELL, stage)
    assert store.node(CELL, stage).key == key(CELL, stage)


def test_looking_at_a_node_creates_nothing(store):
    node = store.node(CELL, "cell")
    assert (node.result, node.error, node.env, node.config) == (None, None, {}, {})
    assert not store.root.exists()


def test_a_result_exists_if_and_only_if_the_node_is_finished(store):
    with store.claim(CELL, "cell") as node:
        assert node.result is None
        assert not (node.folder / "result.json").exists()
        assert node.finish({"lm_loss": 2.5}) == {"lm_loss": 2.5}
        assert node.result == {"lm_loss": 2.5}
    assert Store(store.root).node(CELL, "cell").result == {"lm_loss": 2.5}
    assert store.node(CELL, "student").result is None


def test_a_node_left_by_an_exception_is_not_finished_and_free_again(store):
    with pytest.raises(ZeroDivisionError), store.claim(CELL, "cell"):
        raise ZeroDivisionError
    with store.claim(CELL, "cell") as node:
        assert node.result is None


def test_a_claimed_node_says_what_it_is_and_where_it_runs(store):
    with store.claim(CELL, "cell") as node:
        assert node.config == identity(CELL, "cell")
        assert {"command", "commit", "started", "python", "versions"} <= set(node.env)
        started = node.env["started"]
        node.finish({}, seconds=3.5)
    assert node.env["started"] == started
    assert node.env["seconds"] == 3.5
    assert node.env["finished"] >= started


def test_claiming_a_finished_node_leaves_it_as_it_is(store):
    with store.claim(CELL, "cell") as node:
        node.finish({"lm_loss": 2.5})
    before = {path.name: path.read_bytes() for path in node.folder.iterdir()}
    with store.claim(CELL, "cell") as again:
        assert again.result == {"lm_loss": 2.5}
    assert {path.name: path.read_bytes() for path in node.folder.iterdir()} == before


def test_finishing_removes_what_was_unfinished_and_nothing_else(store):
    with store.claim(CELL, "cell") as node:
        for name in ("last.ckpt", "metrics.csv"):
            (node.folder / name).write_text("x")
        node.fail("out of memory")
        node.finish({})
    assert whole_files(node.folder) == {"config.json", "env.json", "metrics.csv", "result.json"}


def test_a_checkpoint_is_only_removed_once_the_result_is_there(store):
    """A folder in the checkpoint's place cannot be unlinked: it stands for dying at that moment."""
    with store.claim(CELL, "cell") as node:
        (node.folder / "last.ckpt").mkdir()
        with pytest.raises(OSError, match=r"last\.ckpt"):
            node.finish({"lm_loss": 2.5})
    assert node.result == {"lm_loss": 2.5}


def test_an_error_is_remembered_until_the_node_is_finished(store):
    with store.claim(CELL, "cell") as node:
        node.fail("out of memory")
        assert node.error == "out of memory"
        node.fail("out of disk")
    assert store.node(CELL, "cell").error == "out of disk"
    with store.claim(CELL, "cell") as node:
        assert node.error == "out of disk"
        node.finish({})
        assert node.error is None


def test_attempts_without_time_have_no_part_in_a_result(store):
    for seconds in (0.0, 2.5, 0.0):
        with store.claim(CELL, "cell") as node:
            if seconds:
                node.spend(seconds)
    with store.claim(CELL, "cell") as node:
        node.finish({}, seconds=1.5, commit="def")
    assert [attempt["seconds"] for attempt in node.env["attempts"]] == [2.5, 1.5]
    assert node.env["seconds"] == 4.0
    assert commits_of(node.env)[-1] == "def"
    assert len(commits_of(node.env)) == 2


# Looking up


def finished(store, seed) -> Node:
    with store.claim(override(CELL, {"seed": seed}), "cell") as node:
        node.finish({"seed": seed})
    return node


def test_a_node_is_found_by_its_address_or_the_first_digits_of_it(store):
    nodes = [finished(store, seed) for seed in range(3)]
    for node in nodes:
        assert store.find(node.key) == node
        shortest = next(n for n in range(1, 13) if sum(m.key.startswith(node.key[:n]) for m in nodes) == 1)
        assert store.find(node.key[:shortest]) == node


@pytest.mark.parametrize("count", [2, 30])
def test_a_prefix_of_several_nodes_is_refused_with_their_names(store, count):
    nodes = sorted((finished(store, seed) for seed in range(count)), key=lambda node: node.key)
    with refuses("", *(f"cell/{node.key}" for node in nodes[:5])):
        store.find("")


@pytest.mark.parametrize("prefix", ["zzz", "*/", "[", "config.json"])
def test_a_prefix_of_no_node_is_refused(store, prefix):
    finished(store, 0)
    with refuses("", repr(prefix)):
        store.find(prefix)


def test_a_store_that_does_not_exist_has_no_node(store):
    with refuses("", "'abc'"):
        store.find("abc")


# Stores that cannot be used; a file in a folder's place stops even root


@pytest.mark.parametrize("place", ["store", "store/cell", "store/cell/KEY"])
def test_a_file_in_the_place_of_a_folder_is_one_line(store, place):
    path = store.root.parent / place.replace("KEY", key(CELL, "cell"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a folder")
    with refuses("--store", store.root), store.claim(CELL, "cell"):
        pass
    assert path.read_text() == "not a folder"


def test_a_store_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with refuses("--store", tmp_path / "file", "Not a directory"):
        Store(tmp_path / "file" / "store").check_writable()


def test_a_store_that_can_be_written_is_made_and_left_empty(store):
    store.check_writable()
    assert list(store.root.iterdir()) == []


def test_a_store_may_be_given_as_the_shell_would_read_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    assert Store("$SOMEWHERE/store").root == tmp_path / "store"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/store").root == tmp_path / "store"
