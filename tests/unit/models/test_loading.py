"""The shipped teacher matches its card, is small and worth compressing; and every way to name a model."""

import json
import shutil

import pytest
from refusals import refuses
from transformers import LlamaForCausalLM

from lit_prune.cli.pretrain import WORTH
from lit_prune.config import Cell, Corpus, Teacher
from lit_prune.evaluate.teacher_quality import recipe_of, worth
from lit_prune.models import loading
from lit_prune.models.files import CARD
from lit_prune.store.address import key

FOLDER = loading.SHIPPED / str(Teacher().model)


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / CARD).read_text())


def test_the_shipped_teacher_is_small_and_a_llama_with_grouped_queries_and_a_head_of_its_own(card):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    model, tokenizer = loading.load_model(str(FOLDER)), loading.load_tokenizer(str(FOLDER))
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert model.num_parameters() == card["result"]["parameters"]
    assert len(tokenizer) == model.config.vocab_size == 2048
    text = "def f(x):\n    return x ** 2  # ä€\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_its_card_says_how_it_came_about_and_its_address_is_that_of_its_recipe(card):
    assert card["env"]["commit"]
    assert card["env"]["command"].startswith("pretrain.py")
    assert card["result"]["corpus"] == card["recipe"]["corpus"]["fingerprint"]
    assert card["result"]["tokens"] > 10_000_000
    assert key(Cell(teacher=Teacher(model=None, pretraining=recipe_of(FOLDER))), "teacher") == card["address"]


def test_a_model_on_the_meta_device_is_the_same_without_its_weights(tmp_path):
    shutil.copy(FOLDER / "config.json", tmp_path)
    found, expected = loading.load_model(str(tmp_path), "meta"), loading.load_model(str(FOLDER))
    assert type(found) is type(expected)
    assert not found.training
    shapes = [{name: (one.shape, one.dtype) for name, one in model.state_dict().items()} for model in (found, expected)]
    assert shapes[0] == shapes[1]
    assert {tensor.device.type for tensor in (*found.parameters(), *found.buffers())} == {"meta"}


@pytest.mark.slow
def test_it_is_worth_compressing(card):
    found = worth(FOLDER)
    assert found["gap"] >= WORTH
    if found["same_text"]:
        assert found["teacher"] == pytest.approx(card["result"]["lm_loss"], abs=1e-3)


def test_a_model_is_known_by_its_content_and_not_by_its_place(tiny_llama, tiny_tokenizer, tmp_path):
    for place in ("a", "b"):
        tiny_llama.save_pretrained(tmp_path / place)
        tiny_tokenizer.save_pretrained(tmp_path / place)
    before = loading.fingerprint(str(tmp_path / "a"))
    assert loading.fingerprint(str(tmp_path / "b")) == before
    (tmp_path / "b" / CARD).write_text("{}")
    assert loading.fingerprint(str(tmp_path / "b")) == before
    shutil.copy(FOLDER / "tokenizer.json", tmp_path / "b")
    assert loading.fingerprint(str(tmp_path / "b")) != before


@pytest.mark.parametrize(("model", "pretraining"), [(None, None), ("a", recipe_of(FOLDER))])
def test_a_teacher_is_given_or_trained(model, pretraining):
    with refuses("teacher", "model", "pretraining"):
        loading.pin(Teacher(model=model, pretraining=pretraining))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with refuses("teacher.model", tmp_path, "config.json"):
        loading.fingerprint(str(tmp_path))


def test_a_recipe_that_is_no_llama_is_refused_before_anything_is_read():
    from lit_prune.config import Pretraining
    from lit_prune.models.llama import config_of

    with refuses("pretraining", 50, 6):
        config_of(Pretraining(hidden_size=50, num_attention_heads=6, corpus=Corpus()))
