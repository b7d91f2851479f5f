"""Resolve models: which one is meant, its address, and its tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
from refusals import refuses

from lit_prune.config.overrides import override
from lit_prune.evaluate.model_ref import folder_of, subject
from lit_prune.models.loading import SHIPPED, fingerprint, load_tokenizer
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store
from lit_prune.store.address import digest


@pytest.fixture
def tiny(tmp_path, tiny_llama, tiny_tokenizer):
    """The folder of a model with its tokenizer."""
    tiny_llama.save_pretrained(tmp_path / "models/tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "models/tiny")
    return tmp_path / "models/tiny"


def node(store, stage, key, config, model=None):
    """A node that is done, with a copy of a model, without its tokenizer."""
    folder = store.root / stage / key
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text("{}")
    if model is not None:
        shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    return folder


def test_a_folder_is_known_by_its_content_wherever_it_lies(tiny, tmp_path):
    store, copy = Store(tmp_path / "store"), shutil.copytree(tiny, tmp_path / "elsewhere")
    found, moved = subject(str(tiny), store), subject(f"mine={copy}", store)
    assert (found.label, moved.label) == ("tiny", "mine")
    assert found.about == moved.about == {"model": fingerprint(str(tiny))}
    assert folder_of(found) == found.tokenizer == str(tiny)


def test_a_shipped_teacher_is_known_by_its_name(tmp_path):
    found = subject("python-3.1M", Store(tmp_path))
    assert found.label == "python-3.1M"
    assert found.about == {"model": fingerprint("python-3.1M")}


def test_a_folder_with_an_equals_sign_in_its_name_is_no_label(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "lr=0.1")
    assert subject(str(folder), Store(tmp_path)).model == str(folder)
    assert subject(f"mine={folder}", Store(tmp_path)).label == "mine"


def test_a_shipped_teacher_lends_its_tokenizer_by_its_name(tiny, tmp_path):
    found = subject(str(tiny), Store(tmp_path), "python-3.1M")
    assert found.tokenizer == str(SHIPPED / "python-3.1M")
    with refuses("--tokenizer", "nobody/nothing"):
        subject(str(tiny), Store(tmp_path), "nobody/nothing")


def test_a_node_has_the_tokenizer_of_its_teacher(tiny, tmp_path):
    store = Store(tmp_path / "store")
    shipped = {"fingerprint": fingerprint("python-3.1M"), "pretraining": None}
    cell = node(store, "cell", "abc1234", {"teacher": shipped}, tiny)
    found = subject("abc", store)
    assert found.label == "cell abc123" == subject(str(cell / "model"), store, str(tiny)).label
    assert folder_of(found) == str(cell / "model")
    assert found.tokenizer.endswith("python-3.1M")
    assert set(found.about) == {"model", "tokenizer"}


def test_a_teacher_that_was_trained_is_found_in_the_store_by_its_recipe(tiny, tmp_path):
    store = Store(tmp_path / "store")
    recipe = {"fingerprint": None, "pretraining": {"layers": 3}}
    node(store, "student", "abc1234", {"teacher": recipe}, tiny)
    other = node(store, "teacher", "aaa", {"teacher": {**recipe, "pretraining": {"layers": 4}}}, tiny)
    teacher = node(store, "teacher", "bbb", {"teacher": recipe})
    for folder in (other, teacher):
        shutil.copytree(tiny, folder / "model", dirs_exist_ok=True)
    assert subject("student/abc", store).tokenizer == str(teacher / "model")


def test_without_its_teacher_a_node_needs_a_tokenizer_that_is_named(tiny, tmp_path):
    store = Store(tmp_path / "store")
    node(store, "cell", "abc1234", {"teacher": {"fingerprint": "0" * 64, "pretraining": None}}, tiny)
    with refuses("--model", "abc1234", "--tokenizer"):
        subject("abc1234", store)
    named = subject("abc1234", store, str(tiny))
    assert named.tokenizer == str(tiny)
    assert subject("abc1234", store, str(shutil.copytree(tiny, tmp_path / "moved"))).about == named.about


def test_a_cell_that_was_only_pruned_has_the_weights_of_its_student(tiny_runner, tiny_cell):
    cell = override(tiny_cell, {"distill.max_steps": 0})
    tiny_runner.run([Entry("pruned", 0, cell, {})])
    pruned, student = (tiny_runner.store.node(cell, stage) for stage in ("cell", "student"))
    assert not (pruned.folder / "model").exists()
    found = subject(f"cell/{pruned.key}", tiny_runner.store)
    assert folder_of(found) == found.tokenizer == str(student.folder / "model")


def test_what_is_cut_and_what_is_retrained_have_the_teachers_tokenizer(tiny_runner, tiny_cell):
    tiny_runner.run([Entry("retrained", 0, tiny_cell, {})])
    teacher = load_tokenizer(str(tiny_cell.teacher.model))
    for stage in ("student", "cell"):
        node = tiny_runner.store.node(tiny_cell, stage)
        found = subject(f"{stage}/{node.key}", tiny_runner.store)
        assert found.tokenizer == found.model == str(node.folder / "model")
        assert found.about == subject(found.model, tiny_runner.store).about
        assert load_tokenizer(found.model).get_vocab() == teacher.get_vocab()


def test_an_address_is_told_to_be_ambiguous_unknown_or_not_done(tiny, tmp_path):
    store = Store(tmp_path / "store")
    teacher = {"teacher": {"fingerprint": fingerprint("python-3.1M"), "pretraining": None}}
    node(store, "cell", "abc1", teacher, tiny)
    student = node(store, "student", "abc2", teacher, tiny)
    with refuses("--model", "student/abc2", "cell/abc1"):
        subject("abc", store)
    assert subject("cell/abc", store).label == "cell abc1"
    with refuses("--model", "fff"):
        subject("fff", store)
    (student / "result.json").unlink()
    with refuses("--model", "student", "abc2"):
        subject("student/abc2", store)


def test_what_is_no_model_is_told_of(tmp_path, tiny):
    store = Store(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").unlink()
    (tiny.parent / "config.json").write_text("{}")
    tiny.rename(tiny.with_name("model"))
    for spec, field, value in (
        (str(tmp_path / "empty"), "--model", "config.json"),
        (str(tiny.with_name("model")), "--model", "--tokenizer"),
        (str(tiny.parent), "--model", tiny.parent),
        ("nobody/nothing", "--model", "nobody/nothing"),
        ("mine=", "--model", "mine="),
    ):
        with refuses(field, value):
            subject(spec, store)


def test_a_student_that_keeps_everything_is_its_teacher(tmp_path):
    store, shipped = Store(tmp_path / "store"), SHIPPED / "python-3.1M"
    about = {"stage": "cell", "schema": {"cell": 1}, "teacher": {"fingerprint": fingerprint("python-3.1M")}, "seed": 0}
    student = {"stage": "student", "schema": {}, "teacher": about["teacher"]}
    for kind, parts in (("cell", about), ("student", student)):
        with store.hold(kind, parts) as node:
            node.finish({"whole": kind == "student"})
    assert Path(subject(f"cell/{digest(about)}", store).model) == shipped
