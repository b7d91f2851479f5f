"""Checkpoints match their configs: weights that transformers would initialise, drop or execute are refused by name."""

import json
import shutil

import pytest
import torch
from families import CASES, logits, model_of
from huggingface_hub import HfApi, parse_local_safetensors_file_metadata
from huggingface_hub.errors import NotASafetensorsRepoError
from refusals import refuses
from spoiled import EMBEDDING, HEAD, change, refused, renamed, with_dtype, without
from transformers import AutoModelForCausalLM

from lit_prune.cli.table import main
from lit_prune.config.overrides import override
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import loading
from lit_prune.pipeline.resolve import Resolver


@pytest.mark.parametrize("name", CASES)
def test_what_every_family_saves_is_whole(name, tmp_path):
    model_of(name).save_pretrained(tmp_path)
    loading.check_given(str(tmp_path), None, "teacher.model")


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


def test_ids_that_a_text_can_yield_have_an_embedding(folder, tiny_tokenizer):
    loading.check_ids(tiny_tokenizer, 256, "teacher.model")
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # id 256, which no text yields
    loading.check_ids(tokenizer, 256, "teacher.model")
    tokenizer.add_tokens(["word"])
    with refuses("teacher.model", 256, 257, "'word'"):
        loading.check_ids(tokenizer, 256, "teacher.model")


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
    with refuses("teacher.model", "model.layers.1.input_layernorm.weight"):
        loading.check_given("some/model", "0" * 40, "teacher.model")
    (folder / "model.safetensors").unlink()
    with refuses("teacher.model", "some/model", "safetensors"):
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
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert error.startswith(f"error: {field}: {folder}: ")
    assert "layers.3" in error
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
    with refuses("prune.init_from", folder, f"got {first}", "2 ids"):
        tiny_runner.check([Resolver().pin(cell)])
    vocab["e"], vocab["a"] = vocab["a"], 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with refuses("prune.init_from", folder, "got 300", "'a'", "1 tokens"):
        tiny_runner.check([Resolver().pin(cell)])
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tiny_runner.check([Resolver().pin(cell)])
