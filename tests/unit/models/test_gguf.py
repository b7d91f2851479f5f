"""A GGUF file loads as the model it was written from, bit for bit, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import Quantised, write_gguf
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from lit_prune.config import ConfigError
from lit_prune.models import loading
from lit_prune.models.bos import expects_bos
from lit_prune.models.gguf_convert import halves_of_pairs
from lit_prune.models.gguf_header import ARCHITECTURES, read_header
from lit_prune.models.gguf_tokenizer import PRE_TOKENIZERS

SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_PRUNE_HOME", str(tmp_path / "home"))


def model_of(arch: str = "llama", **config: Any) -> Any:
    """A model of random weights; the norms' and biases' are random too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[arch](**SIZES | config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5 if "norm" in name else -0.5, 1.5 if "norm" in name else 0.5)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def stored_dtypes(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def refusal(path: Path) -> str:
    """What is said of a file where it is named as a teacher, before and after its fingerprint is known."""
    with pytest.raises(ConfigError) as caught:
        loading.locate(str(path))
    assert str(caught.value).startswith("teacher.model: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_computes_what_its_dequantised_weights_compute(kind, tied, tmp_path, tiny_tokenizer):
    model = model_of(tie_word_embeddings=tied)
    before = logits(model)
    path = write_gguf(tmp_path / "x.gguf", model, tiny_tokenizer, Quantised[kind])
    place = loading.locate(str(path))
    found = loading.load_model(place)
    assert found.num_parameters() == model.num_parameters()
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-6, atol=1e-6)
    assert torch.equal(logits(found), before) == (kind == "F32")
    assert stored_dtypes(Path(place)) == {"F32"}


def test_weights_that_half_precision_holds_are_stored_in_it(tmp_path, tiny_tokenizer):
    for dtype in (torch.bfloat16, torch.float16):
        model = model_of()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()
        place = loading.locate(str(write_gguf(tmp_path / f"{dtype}.gguf", model, tiny_tokenizer)))
        assert stored_dtypes(Path(place)) == {{torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]}
        assert loading.load_config(place).dtype == dtype
        assert torch.equal(logits(loading.load_model(place)), logits(model))


@pytest.mark.parametrize(
    ("arch", "config"), [("llama", {"attention_bias": True}), ("qwen2", {}), ("qwen3", {}), ("llama", {"head_dim": 32})]
)
def test_every_architecture_computes_what_was_written(arch, config, tmp_path, tiny_tokenizer):
    model = model_of(arch, **config)
    path = write_gguf(tmp_path / "x.gguf", model, tiny_tokenizer, arch=arch)
    assert torch.equal(logits(loading.load_model(loading.locate(str(path)))), logits(model))


def test_the_rows_of_rotary_pairs_are_put_back():
    pairs = np.array([0, 2, 1, 3, 4, 6, 5, 7])  # two heads of four: (0, 2), (1, 3)
    assert halves_of_pairs(pairs, 2).tolist() == list(range(8))


def test_transformers_reads_the_same_weights(tmp_path, tiny_tokenizer):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, Quantised.Q4_1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    ours = loading.load_model(loading.locate(str(path))).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_tokenizer_goes_there_and_back(tmp_path, tiny_tokenizer, texts):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer)
    place = loading.locate(str(path))
    found = loading.load_tokenizer(place)
    assert found.get_vocab() == tiny_tokenizer.get_vocab()
    assert found(texts)["input_ids"] == tiny_tokenizer(texts)["input_ids"]
    assert [found.decode(ids) for ids in found(texts)["input_ids"]] == texts
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|endoftext|>", "<|endoftext|>", None)
    assert found("<|endoftext|>a")["input_ids"][0] == 0
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert not expects_bos(Path(place))
    assert json.loads((Path(place) / "generation_config.json").read_text())["eos_token_id"] == 0


def test_a_tokenizer_of_sentencepiece_goes_there_and_back(tmp_path, shared):
    original = str(shared / "models/stories260K-hf")
    model, tokenizer = loading.load_model(original), loading.load_tokenizer(original)
    place = loading.locate(str(write_gguf(tmp_path / "x.gguf", model, tokenizer, pre="sentencepiece")))
    found = loading.load_tokenizer(place)
    stories = json.loads((shared / "data/tinystories/tinystories_1000.json").read_text())[:50]
    texts = [story["text"] if isinstance(story, dict) else story for story in stories]
    texts = [" ".join(text.split(" ")).strip() for text in texts if "  " not in text]
    assert len(texts) > 20
    assert found(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert [found.decode(ids, skip_special_tokens=True) for ids in found(texts)["input_ids"]] == texts
    assert loading.locate(str(tmp_path / "x.gguf")).pending is None
    assert expects_bos(Path(place))
    ids = torch.tensor([found(texts[0])["input_ids"][:100]])
    with torch.no_grad():
        assert torch.equal(loading.load_model(place)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_texts_are_split_as_the_file_says(pre, tmp_path, tiny_tokenizer):
    header = read_header(str(write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, pre=pre)))
    split = loading.load_tokenizer(loading.locate(header.location)).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in split.pre_tokenize_str("x 1234 y's")]
    digits = {"gpt-2": ["Ġ1234"], "llama-bpe": ["Ġ", "123", "4"]}.get(pre, ["Ġ", "1", "2", "3", "4"])
    assert pieces == ["x", *digits, "Ġy", "'s"]


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [("gpt-2", {}, False), ("gpt-2", {"add_bos": True}, True), ("llama-bpe", {}, True),
     ("llama-bpe", {"add_bos": False}, False)],
)  # fmt: skip
def test_texts_begin_with_bos_where_the_file_says_so(pre, flags, expected, tmp_path, tiny_tokenizer):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, pre=pre, **flags)
    before = loading.locate(str(path), weights=False)
    assert before.pending is not None
    assert before.pending.expects_bos is expected
    place = loading.locate(str(path))
    assert expects_bos(Path(place)) is expected
    assert (loading.load_tokenizer(place)("a")["input_ids"][0] == 0) is expected


def test_the_config_is_known_before_the_file_is_converted(tmp_path, tiny_tokenizer):
    model = model_of(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-5)
    path = write_gguf(tmp_path / "x.gguf", model, tiny_tokenizer)
    before = loading.load_config(loading.locate(str(path), weights=False)).to_dict()
    after = loading.load_config(loading.locate(str(path))).to_dict()
    made_later = ("architectures", "dtype", "_name_or_path", "transformers_version")
    assert {k: v for k, v in before.items() if k not in made_later} == {
        k: v for k, v in after.items() if k not in made_later
    }
    assert after["rms_norm_eps"] == 1e-5
    for name in (*SIZES, "rope_parameters", "tie_word_embeddings"):
        assert after[name] == getattr(model.config, name)


def test_an_architecture_that_is_not_read_is_named(tmp_path, tiny_tokenizer):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, arch="gemma")
    message = refusal(path)
    assert "'gemma'" in message
    assert all(name in message for name in ARCHITECTURES)


def add_rope_scaling(writer: Any) -> None:
    writer.add_string("llama.rope.scaling.type", "linear")


def add_experts(writer: Any) -> None:
    writer.add_expert_count(8)


def add_frequencies(writer: Any) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))


def add_other_width(writer: Any) -> None:
    writer.add_value_length(8)


@pytest.mark.parametrize(
    ("extra", "named"),
    [(add_rope_scaling, "llama.rope.scaling.type"), (add_experts, "llama.expert_count"),
     (add_frequencies, "rope_freqs.weight"), (add_other_width, "attention.value_length")],
)  # fmt: skip
def test_what_is_not_understood_is_refused(extra, named, tmp_path, tiny_tokenizer):
    assert named in refusal(write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, extra=extra))
    assert not list((tmp_path / "home").glob("models/[0-9a-f]*"))


def test_a_missing_tensor_is_named(tmp_path, tiny_tokenizer):
    model = model_of()
    layers = model.model.layers
    layers[1].mlp.up_proj = torch.nn.Identity()
    assert "blk.1.ffn_up.weight" in refusal(write_gguf(tmp_path / "x.gguf", model, tiny_tokenizer))


def test_a_split_that_is_not_known_is_named(tmp_path, tiny_tokenizer):
    assert "'viking'" in refusal(write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer, pre="viking"))


def test_what_is_no_whole_file_is_refused(tmp_path, tiny_tokenizer):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer)
    whole = path.read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("header", whole[:100]),
        ("text", b"no model"),
        ("empty", b""),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        assert f"{name}.gguf" in refusal(tmp_path / f"{name}.gguf")
    assert "none.gguf" in refusal(tmp_path / "none.gguf")


def test_a_header_is_read_once_and_again_if_the_file_changes(tmp_path, tiny_tokenizer):
    path = write_gguf(tmp_path / "x.gguf", model_of(), tiny_tokenizer)
    first = read_header(str(path))
    assert read_header(str(path)).tensors is first.tensors
    write_gguf(path, model_of(num_hidden_layers=3), tiny_tokenizer)
    assert read_header(str(path)).config["num_hidden_layers"] == 3
