"""A loaded model is compared with the description of its family, and refused if they differ."""

import copy
from dataclasses import replace

import pytest
import torch
from families import CASES, SIZES, model_of, plan_for
from refusals import refuses
from transformers import AutoConfig, AutoModelForCausalLM

from lit_prune.models.consistency import check_pieces
from lit_prune.models.families import FAMILIES
from lit_prune.models.files import Place
from lit_prune.models.loading import load_model
from lit_prune.pruning import surgery

LLAMA = FAMILIES["llama"]


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_built_as_described_and_the_check_leaves_it_alone(name):
    model = model_of(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    check_pieces(model, "the model")
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_step_after_the_head_that_is_not_described_is_refused_when_the_model_is_loaded(monkeypatch, tmp_path):
    """Cohere multiplies its logits by `logit_scale` (transformers, modeling_cohere.py)."""
    parallel = replace(LLAMA, mlp_norm="input_layernorm", norm="layer", whole_heads=False)
    monkeypatch.setitem(FAMILIES, "cohere", parallel)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere", **SIZES)).save_pretrained(tmp_path)
    with refuses("prune.init_from", "cohere", "head"):
        load_model(Place(str(tmp_path), field="prune.init_from"))
    monkeypatch.setitem(FAMILIES, "cohere", replace(parallel, after_head=("logit_scale", "multiply")))
    load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "wrong", "part"),
    [
        ("llama", {"final_norm": "model.layers.2.input_layernorm"}, "final norm"),
        ("llama", {"norm": "layer"}, "final norm"),
        ("llama", {"norm_offset": 1.0}, "final norm"),
        ("llama", {"input_norm": "post_attention_layernorm"}, "input of self_attn.q_proj in layer 0"),
        ("llama", {"input_norm": None}, "input of self_attn.q_proj in layer 0"),
        ("llama", {"mlp_norm": "input_layernorm"}, "input of the MLP at input_layernorm in layer 0"),
        ("llama", {"mlp": "mlp.down_proj"}, "input of the MLP at mlp.down_proj in layer 0"),
        ("llama", {"attention_input": ("self_attn.q_proj",)}, "width of queries, keys and values in layer 0"),
        ("llama", {"attention_input": ("self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj")}, "width of the"),
        ("llama", {"attention_output": "mlp.down_proj"}, "width of the heads in layer 0"),
        ("llama", {"mlp_input": ("mlp.up_proj", "mlp.gate_proj")}, "input of mlp.act_fn in layer 0"),
        ("nemotron", {"activation": "mlp"}, "input of mlp in layer 0"),
        ("llama", {"axes": LLAMA.axes | {"down_proj.weight": ("hidden", None)}}, "with its neurons in another order"),
        ("llama", {"axes": LLAMA.axes | {"v_proj.weight": (None, "hidden")}}, "with its heads in another order"),
        ("llama", {"axes": LLAMA.axes | {"o_proj.weight": (None, "head")}}, "with its hidden channels in another"),
        ("gpt_neox", {"axes": FAMILIES["gpt_neox"].axes | {
            "query_key_value.weight": (("head", "kv_group", "kv_group"), "hidden")}}, "with its heads in another"),
        ("olmo2", {"axes": FAMILIES["olmo2"].axes | {"q_norm.weight": (None,)}}, "with its heads in another order"),
        ("llama", {"axes": LLAMA.axes | {"down_proj.weight": ("hidden",)}}, "number of axes of mlp.down_proj.weight"),
        ("llama", {"axes": LLAMA.axes | {"layernorm.weight": ("neuron",)}}, "size of input_layernorm.weight"),
        ("llama", {"activation": "mlp.activation_fn"}, "activation_fn"),
    ],
)  # fmt: skip
def test_a_description_that_is_wrong_in_one_fact_is_refused_with_the_part(family, wrong, part, monkeypatch):
    model = model_of(family)
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], **wrong))
    with refuses("", part):
        check_pieces(model, "the model")


def test_a_parameter_that_is_not_described_is_refused(monkeypatch):
    axes = {name: axis for name, axis in LLAMA.axes.items() if name != "up_proj.weight"}
    monkeypatch.setitem(FAMILIES, "llama", replace(LLAMA, axes=axes))
    with refuses("teacher.model", "model.layers.0.mlp.up_proj.weight"):
        check_pieces(model_of("llama"), "the model")


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "olmo2"])
def test_students_whose_layers_differ_in_width_are_checked_layer_by_layer(name, tmp_path, monkeypatch):
    surgery.apply(model_of(name), plan_for(name, "uneven")).save_pretrained(tmp_path)
    load_model(str(tmp_path))
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], norm_offset=0.5))
    with refuses(str(tmp_path), "final norm"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e3])
def test_layers_that_add_next_to_nothing_or_very_much_are_no_difference(scale):
    model = copy.deepcopy(model_of("llama"))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= scale
            layer.mlp.down_proj.weight *= scale
    check_pieces(model, "the model")


def test_a_family_without_a_description_is_left_to_those_who_read_its_parts():
    check_pieces(AutoModelForCausalLM.from_config(AutoConfig.for_model("biogpt", **SIZES)), "the model")
