"""The head read from a model reproduces its logits, in every family."""

from __future__ import annotations

import copy

import pytest
import torch
from families import CASES, config_of, logits, model_of, token_ids
from refusals import refuses
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from lit_prune.models.lm_head import head_of, last_states
from lit_prune.models.model_family import FAMILIES, anatomy_of


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


STEPS = {
    "cap": lambda logits: 0.5 * torch.tanh(logits / 0.5),
    "divide": lambda logits: logits / 0.5,
    "multiply": lambda logits: logits * 0.5,
}


@pytest.mark.parametrize("name", [name for name, (family, _) in CASES.items() if FAMILIES[family].after_head])
def test_what_follows_the_linear_map_is_there(name):
    setting, kind = anatomy_of(config_of(name)).after_head
    model = built(name, **{setting: 0.5})
    head, nothing = head_of(model), None if kind == "cap" else 1.0
    with torch.no_grad():
        states = last_states(model, token_ids())
        assert torch.equal(head.logits(states), logits(model))
        torch.testing.assert_close(head.logits(states), STEPS[kind](head.linear(states)), rtol=1e-6, atol=0)
        assert not torch.allclose(head.linear(states), logits(model), atol=1e-2)
    assert head_of(built(name, **{setting: nothing})).finish is None


def test_a_head_has_a_bias_where_one_is_described():
    biased = {name for name in CASES if head_of(model_of(name)).bias is not None}
    assert biased == {name for name in CASES if "lm_head.bias" in anatomy_of(config_of(name)).axes}
    assert "phi" in biased


@pytest.mark.parametrize("name", ["gemma2", "phi", "granite"])
@pytest.mark.parametrize("how", ["autocast", "autocast, cast once", "weights in bfloat16"])
def test_logits_of_bfloat16_factors_are_float32(name, how):
    """The product in float64 is the reference; the model rounds it, and the factors under autocast, to bfloat16."""
    model = model_of(name)
    if how == "weights in bfloat16":
        model = copy.deepcopy(model).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled="autocast" in how):
        states, theirs = last_states(model, token_ids()), logits(model)
        ours = (head_of(model).cast() if "once" in how else head_of(model)).logits(states)
    assert theirs.dtype == torch.bfloat16
    assert ours.dtype == torch.float32
    head = head_of(model)
    factors = [None if x is None else x.detach().double() for x in (states, head.weight, head.bias)]
    exact = torch.nn.functional.linear(*factors)
    exact = exact if head.finish is None else head.finish(exact)
    assert (ours - exact).norm() < 1e-6 * exact.norm()
    assert (theirs - exact).norm() > 1e-3 * exact.norm()


def test_a_head_in_the_dtype_of_its_products_is_not_copied():
    head = head_of(model_of("gemma2"))
    assert head.cast() is head


def test_an_unknown_family_is_refused_rather_than_given_a_head_that_may_lack_a_step():
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with refuses("teacher.model", "'bert'"):
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
