"""The head read from a model gives its logits, in every family."""

from __future__ import annotations

import copy

import pytest
import torch
from families import CASES, config_of, logits, model_of, token_ids
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from lit_prune.config import ConfigError
from lit_prune.models.head import head_of, last_states


@pytest.mark.parametrize("name", CASES)
def test_head_and_last_states_give_the_logits_of_the_model(name):
    model = model_of(name)
    with torch.no_grad():
        states = last_states(model, token_ids())
        assert states.shape == (2, 17, model.config.hidden_size)
        assert torch.equal(head_of(model).logits(states), logits(model))


@pytest.mark.parametrize("name", CASES)
def test_so_they_do_where_the_head_is_the_embedding_and_where_it_is_not(name):
    for tied in (True, False):
        model = built(name, tie_word_embeddings=tied)
        head = head_of(model)
        assert (head.weight is model.get_input_embeddings().weight) == tied
        with torch.no_grad():
            assert torch.equal(head.logits(last_states(model, token_ids())), logits(model))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("gemma2", "final_logit_softcapping", 0.5),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma3_text", "final_logit_softcapping", 0.5),
        ("granite", "logits_scaling", 8.0),
    ],
)
def test_what_follows_the_linear_map_is_there(name, setting, value):
    model = built(name, **{setting: value})
    head = head_of(model)
    assert (head.finish is None) == (value is None)
    with torch.no_grad():
        states = last_states(model, token_ids())
        assert torch.equal(head.logits(states), logits(model))
        assert torch.equal(head.linear(states), logits(model)) == (value is None)


def test_a_head_may_have_a_bias():
    assert {name for name in CASES if head_of(model_of(name)).bias is not None} == {"phi", "phi, MHA"}


@pytest.mark.parametrize("name", ["gemma2", "phi", "granite"])
def test_under_autocast_a_head_that_was_cast_once_gives_the_logits_of_the_model(name):
    model = model_of(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        head = head_of(model).cast()
        assert head.weight.dtype == torch.bfloat16
        ours = head.logits(last_states(model, token_ids()))
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, logits(model))
    head = head_of(model)
    assert head.cast() is head


def test_an_unknown_family_is_refused_rather_than_given_a_head_that_may_lack_a_step():
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ConfigError, match="family 'bert'"):
        head_of(BertModel(tiny))


def built(name, **settings):
    config = copy.deepcopy(config_of(name))
    for setting, value in settings.items():
        setattr(config, setting, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
