"""Checkpoints are what their configs say: what transformers would fill in, drop or run is refused, naming it."""

import json
import os
import shutil
import sys

import pytest
import torch
from families import CASES, logits, model_of
from huggingface_hub import HfApi, parse_local_safetensors_file_metadata
from huggingface_hub.errors import NotASafetensorsRepoError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_prune.cli.table import main
from lit_prune.config import ConfigError
from lit_prune.config.overrides import override
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import loading
from lit_prune.models.files import Place
from lit_prune.pipeline.resolve import Resolver

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path, tiny_llama, tiny_tokenizer):
    """A whole model with its tokenizer."""
    tiny_llama.save_pretrained(tmp_path / "whole")
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def change(folder, rewrite=None, **config):
    """Rewrite the weights of a folder and set fields of its config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if rewrite is not None:
        weights = load_file(folder / "model.safetensors")
        save_file(rewrite(weights), folder / "model.safetensors", {"format": "pt"})


def refused(folder):
    """What is said of a folder before any weight is read; loading says the same."""
    with pytest.raises(ConfigError) as early:
        loading.check_given(str(folder), None, "prune.init_from")
    with pytest.raises(ConfigError) as late:
        loading.load_model(Place(str(folder), field="prune.init_from"))
    assert str(early.value) == str(late.value)
    assert str(early.value).startswith("prune.init_from: ")
    assert "\n" not in str(early.value)
    return str(early.value)


@pytest.mark.parametrize("name", CASES)
def test_what_every_family_saves_is_whole(name, tmp_path):
    model_of(name).save_pretrained(tmp_path)
    loading.check_given(str(tmp_path), None, "teacher.model")


def without(*parts):
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


def renamed(old, new):
    return lambda weights: {name.replace(old, new): w for name, w in weights.items()}


def with_dtype(dtype):
    return lambda weights: weights | {HEAD: weights[HEAD].to(dtype)}


@pytest.mark.parametrize(
    ("rewrite", "config", "named"),
    [
        (None, {"num_hidden_layers": 4}, "layers.3.input_layernorm.weight"),
        (None, {"num_hidden_layers": 2}, "layers.2.input_layernorm.weight"),
        (without("lm_head"), {}, HEAD),
        (without("layers.1.mlp.up_proj"), {}, "model.layers.1.mlp.up_proj.weight"),
        (renamed("model.", "other."), {}, "other.embed_tokens.weight"),
        (None, {"intermediate_size": 52}, "[48, 32] instead of [52, 32]"),
        (None, {"vocab_size": 512}, "[256, 32] instead of [512, 32]"),
        (None, {"tie_word_embeddings": True}, HEAD),
        (with_dtype(torch.float8_e4m3fn), {}, f"{HEAD} F8_E4M3"),
        (with_dtype(torch.int8), {}, f"{HEAD} I8"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_named(folder, rewrite, config, named):
    change(folder, rewrite, **config)
    assert named in refused(folder)


def test_what_ties_and_what_earlier_versions_saved_is_accepted(folder, tmp_path):
    expected = logits(loading.load_model(str(folder)))
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change(folder, lambda weights: weights | inverse)
    assert torch.equal(logits(loading.load_model(str(folder))), expected)
    change(folder, lambda weights: weights | {HEAD: weights[EMBEDDING].clone()}, tie_word_embeddings=True)
    tied = loading.load_model(str(folder))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    change(folder, without("lm_head"))
    assert torch.equal(logits(loading.load_model(str(folder))), logits(tied))


def test_a_gpt2_of_the_hub_has_no_prefix_and_old_masks(tmp_path):
    model = model_of("gpt2")
    model.save_pretrained(tmp_path)
    masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    change(tmp_path, lambda weights: renamed("transformer.", "")(weights) | masks)
    assert torch.equal(logits(loading.load_model(str(tmp_path))), logits(model))
    change(tmp_path, without("h.2.mlp.c_fc.weight"))
    assert "transformer.h.2.mlp.c_fc.weight" in refused(tmp_path)


def test_shards_and_pickled_weights_are_read_and_missing_ones_named(folder, tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    (first, *_) = sorted((tmp_path / "shards").glob("*.safetensors"))
    loading.check_given(str(tmp_path / "shards"), None, "teacher.model")
    first.unlink()
    assert f"{first.name} is missing" in refused(tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refused(folder)
    torch.save(tiny_llama.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(logits(loading.load_model(str(folder))), logits(tiny_llama))
    torch.save(without("lm_head")(tiny_llama.state_dict()), folder / "pytorch_model.bin")
    assert f"{HEAD} is missing" in refused(folder)


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
    with pytest.raises(ConfigError, match=file):
        loading.load_tokenizer(str(folder))


def test_a_tokenizer_of_another_kind_is_refused_naming_its_file(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    with pytest.raises(ConfigError, match=r"tokenizer\.model"):
        loading.load_tokenizer(str(folder))


def test_ids_that_a_text_can_yield_have_an_embedding(folder, tiny_tokenizer):
    loading.check_ids(tiny_tokenizer, 256, "teacher.model")
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # id 256, which no text yields
    loading.check_ids(tokenizer, 256, "teacher.model")
    tokenizer.add_tokens(["word"])
    with pytest.raises(ConfigError, match=r"below 256, got 257 \('word'\)"):
        loading.check_ids(tokenizer, 256, "teacher.model")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "unheard_of"])
def test_quantised_weights_are_refused(folder, method):
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    assert method in refused(folder)


@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_refused(folder, alone):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somewhere/else"}')
    if alone:
        (folder / "config.json").unlink()
    assert "adapter_config.json" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_gguf_alone_is_refused(folder, file):
    (folder / file).unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf" in refused(folder)


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        loading.fingerprint(str(folder))


@pytest.mark.parametrize("part", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_code_of_a_folder_is_never_run_and_nobody_is_asked(folder, part, monkeypatch):
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    file = "tokenizer_config.json" if part == "AutoTokenizer" else "config.json"
    known = json.loads((folder / file).read_text())
    kind = {"tokenizer_class": "Own"} if part == "AutoTokenizer" else {"model_type": "unheard_of"}
    value = ["own.Own", None] if part == "AutoTokenizer" else "own.Own"
    (folder / file).write_text(json.dumps(known | kind | {"auto_map": {part: value}}))
    read, write = os.pipe()
    os.write(write, b"y\n")
    os.close(write)
    with os.fdopen(read) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        for load in (loading.load_tokenizer,) if part == "AutoTokenizer" else (loading.load_config, loading.load_model):
            with pytest.raises(ConfigError, match=r"config\.json|tokenizer\.json"):
                load(str(folder))
        assert answers.read() == "y\n"
    assert not (folder / "ran").exists()


@pytest.fixture
def of_hub(folder, monkeypatch):
    """The headers of a hub model whose files are those of `folder`, as the hub's client hands them on."""
    from huggingface_hub.utils import SafetensorsRepoMetadata

    def metadata(self, model, revision):
        path = folder / "model.safetensors"
        if not path.exists():
            raise NotASafetensorsRepoError(f"{model!r} is not a safetensors repo")
        files = {path.name: parse_local_safetensors_file_metadata(path)}
        weight_map = dict.fromkeys(files[path.name].tensors, path.name)
        return SafetensorsRepoMetadata(metadata=None, sharded=False, weight_map=weight_map, files_metadata=files)

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", metadata)
    snapshot = shutil.copytree(folder, folder.parent / "snapshot", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(snapshot))
    return snapshot


def test_a_hub_model_is_checked_before_it_is_fetched(of_hub, folder):
    loading.check_given("some/model", "0" * 40, "teacher.model")
    change(folder, without("layers.1"))
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.input_layernorm\.weight"):
        loading.check_given("some/model", "0" * 40, "teacher.model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="some/model must have its weights as safetensors"):
        loading.check_given("some/model", "0" * 40, "teacher.model")


def test_loading_is_what_transformers_loads(folder, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loading.load_model(str(folder))), logits(model))


@pytest.mark.parametrize("field", ["teacher.model", "prune.init_from"])
def test_a_dry_run_refuses_it_before_anything_is_written(folder, field, tmp_path, capsys):
    change(folder, num_hidden_layers=4)
    (tmp_path / "text.txt").write_text("some text\n" * 999)
    given = f"{field}={folder}", f"corpus.path={tmp_path / 'text.txt'}", "prune.num_attention_heads=null"
    whole = [] if field == "teacher.model" else [f"teacher.model={whole_copy(folder)}"]
    short = [f"{section}.seq_len=32" for section in ("calibration", "distill", "evaluation")]
    words = [word for setting in (*given, *whole, *short) for word in ("--set", setting)]
    flags = ["--dry-run", "--store", str(tmp_path / "store"), "--wandb", "disabled"]
    assert main(TABLE, [*words, *flags]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: {field}: {folder}: ")
    assert "layers.3" in said
    assert not list((tmp_path / "store").glob("*/*"))


def whole_copy(folder):
    """A copy of a model with its fourth layer, which it lacks, struck from its config."""
    copy = shutil.copytree(folder, folder.parent / "copy")
    change(copy, num_hidden_layers=3)
    return copy


def test_a_student_whose_ids_stand_for_other_tokens_is_refused(folder, tiny_cell, tiny_runner):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    cell = override(
        tiny_cell, {"prune.init_from": str(folder), "prune.hidden_size": None, "prune.intermediate_size": None}
    )
    tiny_runner.check([Resolver().pin(cell)])
    first = min(vocab["e"], vocab["a"])
    vocab["e"], vocab["a"] = vocab["a"], vocab["e"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=f"prune.init_from: {folder}: .* got {first} for .* \\(2 ids differ\\)"):
        tiny_runner.check([Resolver().pin(cell)])
    vocab["e"], vocab["a"] = vocab["a"], 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=f"prune.init_from: {folder}: .* got 300 for 'a', .* \\(1 tokens differ\\)"):
        tiny_runner.check([Resolver().pin(cell)])
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tiny_runner.check([Resolver().pin(cell)])
