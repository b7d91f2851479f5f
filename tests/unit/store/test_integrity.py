"""A damaged artifact is not done: it is set aside and computed again; results computed from it stay valid."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lit_prune.config import Cell, Corpus, Distill, Teacher
from lit_prune.config.overrides import override
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Node, Store, integrity

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64), distill=Distill(max_steps=1))
LARGE = np.arange(2**19, dtype=np.float32)
RESULT = {"lm_loss": 2.5, "perplexity": math.inf, "sizes": (1, 2), 3: None}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def node(store) -> Node:
    """A finished cell with small files and a model of 2 MiB."""
    with store.claim(CELL, "cell") as node:
        (node.folder / "metrics.csv").write_text("step,loss\n1,2.5\n")
        (node.folder / "model").mkdir()
        (node.folder / "model/config.json").write_text("{}")
        save_file({"x": LARGE}, node.folder / "model/model.safetensors")
        node.finish(RESULT)
    return node


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


SMALL = ("result.json", "config.json", "env.json", "metrics.csv", "model/config.json")
MODEL = "model/model.safetensors"


def test_a_result_comes_back_as_it_was_given(node):
    assert node.result == node.verified == json.loads(json.dumps(RESULT))
    assert node.damage(deep=True) is None


@pytest.mark.parametrize("spoil", [cut, flip, delete])
@pytest.mark.parametrize("name", [*SMALL, MODEL])
def test_every_damage_to_every_file_is_seen_set_aside_and_said(store, node, name, spoil, capsys):
    if (name, spoil) == ("result.json", delete):
        pytest.skip("a node without a result is not done, which is no damage")
    spoil(node.folder / name)
    assert node.verified is None
    assert name in (node.damage(deep=True) or "")
    # Listing compares large files by size alone.
    assert (node.result is None) == ((name, spoil) != (MODEL, flip))
    broken = {path.name for path in node.folder.iterdir()}
    with store.claim(CELL, "cell") as again:
        assert again.folder == node.folder
        assert {path.name for path in again.folder.iterdir()} == {"config.json", "env.json"}
        again.finish({"lm_loss": 2.5})
    aside = store.root / "damaged" / "cell" / f"{node.key}-1"
    assert {path.name for path in aside.iterdir()} == broken
    (line,) = capsys.readouterr().err.splitlines()
    assert str(node.folder) in line
    assert str(aside) in line
    assert store.find(node.key) == node


def test_a_second_damaged_node_of_an_address_is_kept_beside_the_first(store, node):
    for number in (1, 2):
        cut(node.folder / "result.json")
        with store.claim(CELL, "cell") as again:
            again.finish({})
        assert (store.root / "damaged/cell" / f"{node.key}-{number}").is_dir()


def test_every_flipped_bit_of_a_result_is_seen(node):
    """Also where the text is still JSON, and where the key of the record itself is hit."""
    path = node.folder / "result.json"
    whole = path.read_bytes()
    bits = torch.randint(8 * len(whole), (300,), generator=torch.Generator().manual_seed(0)).tolist()
    record = whole.index(b'"integrity"')
    for bit in (*bits, *range(8 * record, 8 * (record + 11))):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            same = json.loads(content) == json.loads(whole)
        except ValueError:
            same = False
        assert same or node.result is None, bit


def without_digests(folder, result):
    """Turn a finished node into one of a store from before digests were recorded."""
    (folder / "result.json").write_text(json.dumps(result))
    env = json.loads((folder / "env.json").read_text())
    del env["store_format"]
    (folder / "env.json").write_text(json.dumps(env))


def test_a_result_without_digests_is_valid_where_its_files_are_there(node):
    without_digests(node.folder, {"lm_loss": 2.5})
    flip(node.folder / "metrics.csv")
    assert node.verified == {"lm_loss": 2.5}


@pytest.mark.parametrize("spoil", [cut, delete])
def test_a_result_without_digests_is_damaged_where_its_model_is_cut_or_gone(node, spoil):
    without_digests(node.folder, {"lm_loss": 2.5})
    spoil(node.folder / MODEL)
    assert "safetensors" in (node.damage() or "")


def test_a_cell_that_was_not_retrained_needs_no_model(store):
    with store.claim(override(CELL, {"distill.max_steps": 0}), "cell") as node:
        node.finish({})
    without_digests(node.folder, {"lm_loss": 2.5})
    assert node.verified == {"lm_loss": 2.5}


def test_files_without_digests_in_a_new_store_are_not_taken_for_an_old_result(node):
    (node.folder / "result.json").write_text("{}")
    assert node.damage() == "result.json has no record of files"


def test_a_digest_is_computed_once_per_process(node, monkeypatch):
    assert node.verified is not None
    monkeypatch.setattr(integrity.hashlib, "file_digest", None)
    assert node.verified is not None


# The stages of a real cell


def stages_of(store, cell) -> dict[str, Node]:
    return {stage: store.node(cell, stage) for stage in ("tokens", "student", "cell")}


@pytest.mark.parametrize(
    ("stage", "name", "spoil"),
    [
        ("tokens", "train.bin", cut), ("tokens", "calibration.bin", flip), ("tokens", "validation.bin", delete),
        ("student", MODEL, cut), ("student", MODEL, flip), ("cell", "metrics.csv", delete),
    ],
)  # fmt: skip
def test_only_a_damaged_stage_is_computed_again_and_the_answer_is_the_same(
    shared_cell, finished_store, tiny_runner, stage, name, spoil
):
    store, entry = tiny_runner.store, Entry("row", 0, shared_cell, {})
    shutil.copytree(finished_store, store.root)
    nodes = stages_of(store, shared_cell)
    before = {stage: node.result for stage, node in nodes.items()}
    stamps = {stage: (node.folder / "result.json").stat().st_mtime_ns for stage, node in nodes.items()}
    spoil(nodes[stage].folder / name)
    # A finished cell is not computed again because an artifact upstream of it is damaged.
    assert (nodes["cell"].result is None) == (stage == "cell")
    if stage != "cell":
        (nodes["cell"].folder / "result.json").unlink()
    assert tiny_runner.run([entry]) == 0
    assert {stage: node.verified for stage, node in nodes.items()} == before
    computed = {s for s, node in nodes.items() if (node.folder / "result.json").stat().st_mtime_ns != stamps[s]}
    assert computed == {stage, "cell"}
