"""The fingerprint of a model covers all files read for it, and the loaded files are those."""

import shutil

import pytest
import torch
from families import logits
from refusals import refuses
from safetensors.torch import load_file, save_file

from lit_prune.config.overrides import override
from lit_prune.evaluate.model_ref import folder_of, subject, tokenizer_of
from lit_prune.models import loading
from lit_prune.models.files import Place
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store

SHIPPED = "python-3.1M"
SHIPPED_FINGERPRINT = "b848daf557776d3436c4f2985aabf2dc5d6c9a2105f3d698616745ce93a12ee4"


def other_weights(folder):
    """Change the weights of a folder, in place and of the same size."""
    weights = {name: weight + 1 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder.parent / "other.safetensors", {"format": "pt"})
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((folder.parent / "other.safetensors").read_bytes())


def test_the_fingerprint_of_a_folder_without_other_files_stands():
    assert loading.fingerprint(SHIPPED) == SHIPPED_FINGERPRINT


@pytest.mark.parametrize(
    "name",
    [
        "merges.txt", "vocab.txt", "vocab.json", "added_tokens.json", "chat_template.jinja", "spiece.model",
        "additional_chat_templates/tools.jinja",
    ],
)  # fmt: skip
def test_every_file_that_is_read_is_in_the_fingerprint(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    found = {loading.fingerprint(str(folder))}
    for content in ("one", "two"):
        (folder / name).write_text(content)
        found.add(loading.fingerprint(str(folder)))
    assert len(found) == 3


def test_files_that_are_not_read_are_not(folder):
    before = loading.fingerprint(str(folder))
    for name in ("README.md", "own.py", "trainer.log"):
        (folder / name).write_text("anything")
    assert loading.fingerprint(str(folder)) == before


@pytest.mark.parametrize("forgotten", [False, True])
def test_weights_that_changed_after_the_fingerprint_are_refused(folder, forgotten, monkeypatch):
    place = Place(str(folder), loading.fingerprint(str(folder)))
    loading.load_model(place)
    other_weights(folder)
    if forgotten:  # as in another process than that which took the fingerprint
        monkeypatch.setattr("lit_prune.models.files._DIGESTS", {})
    with refuses("teacher.model", folder):
        loading.load_model(place)
    loading.load_model(str(folder))


def test_a_tokenizer_that_changed_after_the_fingerprint_is_refused(folder):
    place = Place(str(folder), loading.fingerprint(str(folder)))
    (folder / "chat_template.jinja").write_text("anything")
    with refuses("teacher.model", "chat_template.jinja"):
        loading.load_tokenizer(place)
    loading.load_model(place)


def test_weights_in_memory_do_not_change_with_their_file(folder):
    model = loading.load_model(str(folder))
    before = logits(model)
    other_weights(folder)
    assert torch.equal(logits(model), before)
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(model), before)


def test_a_blob_of_the_hub_is_what_its_name_says(folder, tmp_path):
    import hashlib

    revision = "0" * 40
    snapshot = shutil.copytree(folder, tmp_path / "snapshots" / revision)
    blob = tmp_path / hashlib.sha256((snapshot / "model.safetensors").read_bytes()).hexdigest()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    place = Place(str(snapshot), revision)
    loading.load_model(place)
    other_weights(snapshot)
    with refuses("teacher.model", "model.safetensors"):
        loading.load_model(place)


def test_a_run_stops_at_the_load_of_weights_that_changed(tiny_runner, tiny_cell, tmp_path):
    cells = [override(tiny_cell, {"distill.max_steps": 0, "prune.intermediate_size": share}) for share in (0.5, 0.75)]
    tiny_runner.run([Entry("first", 0, cells[0], {})])
    other_weights(tmp_path / "tiny")
    tiny_runner.ctx.load.cache_clear()
    with refuses("teacher.model", "model.safetensors"):
        tiny_runner.run([Entry("second", 0, cells[1], {})])
    first, second = (tiny_runner.store.node(cell, "cell") for cell in cells)
    assert first.result is not None
    assert second.result is None


def test_a_tokenizer_named_for_a_model_is_known_by_its_files(folder, tmp_path):
    store, other = Store(tmp_path / "store"), tmp_path / "other"
    shutil.copytree(folder, other)
    first = subject(str(folder), store, str(other))
    (other / "chat_template.jinja").write_text("anything")
    assert subject(str(folder), store, str(other)).about != first.about
    with refuses("--tokenizer"):
        tokenizer_of(first, folder_of(first))


def test_only_a_bare_name_is_that_of_a_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.local_folder(SHIPPED) == loading.SHIPPED / SHIPPED
    for name in (f"./{SHIPPED}", f"{SHIPPED}/../{SHIPPED}", f"../teachers/{SHIPPED}", "..", "../models"):
        assert loading.local_folder(name) in (None, loading.expand(name))
    assert loading.local_folder(".") == loading.expand(".")
    with refuses("teacher.model", "config.json"):
        loading.fingerprint(".")
    (tmp_path / SHIPPED).mkdir()
    assert loading.local_folder(f"./{SHIPPED}") == loading.expand(f"./{SHIPPED}")
