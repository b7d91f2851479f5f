"""Damaged files of a checkpoint are named."""

import pytest
from refusals import refuses
from spoiled import refused

from lit_prune.models import loading


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", lambda old: old[: len(old) // 2]),
        ("model.safetensors", lambda old: b""),
        ("model.safetensors", lambda old: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        ("config.json", lambda old: b""),
        ("config.json", lambda old: old[: len(old) // 2]),
        ("config.json", lambda old: b"[1, 2]"),
        ("config.json", lambda old: b"\xff\xfe"),
        ("config.json", lambda old: b"{}"),
        ("config.json", lambda old: old.replace(b'"hidden_size": 32', b'"hidden_size": "wide"')),
        ("config.json", lambda old: old.replace(b'"num_attention_heads": 4', b'"num_attention_heads": 0')),
        ("config.json", lambda old: old.replace(b'"num_hidden_layers": 3', b'"num_hidden_layers": null')),
    ],
)
def test_a_damaged_file_is_named(folder, file, content):
    old = (folder / file).read_bytes()
    (folder / file).write_bytes(content(old))
    assert (folder / file).read_bytes() != old
    assert file in refused(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_tokenizer_is_named(folder, file, content):
    (folder / file).write_text(content)
    with refuses(str(folder), file):
        loading.load_tokenizer(str(folder))


def test_a_tokenizer_of_another_kind_is_refused_naming_its_file(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    with refuses(str(folder), "tokenizer.model"):
        loading.load_tokenizer(str(folder))


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")
    with refuses("teacher.model", "model.safetensors"):
        loading.fingerprint(str(folder))
