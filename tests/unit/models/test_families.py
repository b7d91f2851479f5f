"""Locations of the parts of each family, checked on real modules by their activations."""

from dataclasses import replace

import pytest
import torch
from families import CASES, HEAD_DIM, MHA, SIZES, config_of, logits, model_of, reloaded
from refusals import refuses
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    GPT2Config,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3MoeConfig,
    StableLmConfig,
    T5Config,
)

from lit_prune.config import ConfigError, Distill
from lit_prune.distill.hidden_states import HiddenStateReader, pairs_of
from lit_prune.models.consistency import check_pieces
from lit_prune.models.model_family import FAMILIES, anatomy_of, head_dim_of, layers_of, parts_of
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import LayerPlan, PrunePlan


def seen(model, modules):
    """What enters and leaves modules of the second block in a forward pass: name -> (input, output)."""
    found, handles = {}, []
    for name in modules:
        module = layers_of(model)[1].get_submodule(name)
        handles.append(
            module.register_forward_hook(lambda m, inputs, output, name=name: found.update({name: (inputs[0], output)}))
        )
    logits(model)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_an_axis_for_each_dimension_that_divides_into_its_units(name):
    model = model_of(name)
    anatomy, shape = anatomy_of(model.config), shape_of(model.config)
    assert (shape.num_hidden_layers, shape.intermediate_size, shape.num_attention_heads, head_dim_of(model.config)) == (
        3,
        20,
        6,
        HEAD_DIM,
    )
    found = set()
    for parameter, weight in model.named_parameters():
        axes = anatomy.axes_of(parameter)
        assert len(axes) == weight.dim(), parameter
        # What is never cut: norms of single heads, biases of the head, scalars.
        assert set(map(parts_of, axes)) != {()} or weight.shape in ((HEAD_DIM,), (96,), (1,)), parameter
        for axis, size in zip(axes, weight.shape, strict=True):
            width = 1 if axes[-1] is None else HEAD_DIM  # a norm of each head has a row for it
            widths = {"hidden": 1, "neuron": 1, "head": width, "kv_group": width}
            if parts_of(axis) and not holds_vectors_side_by_side(anatomy, parameter):
                assert size == sum(widths[part] * shape.units(part) for part in parts_of(axis)), parameter
            found |= set(parts_of(axis))
    assert {"hidden", "neuron", "head"} <= found


def holds_vectors_side_by_side(anatomy, parameter):
    """Whether each head's queries, keys and values are together in a parameter."""
    fused = len(anatomy.attention_input) == 1 and f".{anatomy.attention_input[0]}." in parameter
    return fused and not any(isinstance(axis, tuple) for axis in anatomy.axes_of(parameter))


def test_in_gpt_neox_queries_keys_and_values_of_a_head_lie_together():
    model = model_of("gpt_neox")
    fused = layers_of(model)[1].attention.query_key_value
    assert anatomy_of(model.config).axes_of("gpt_neox.layers.1.attention.query_key_value.weight") == ("head", "hidden")
    assert fused.weight.shape == (6 * 3 * HEAD_DIM, 24)


@pytest.mark.parametrize("name", CASES)
def test_the_norms_are_what_attention_and_mlp_read_and_the_final_one_what_the_head_reads(name):
    model = model_of(name)
    anatomy = anatomy_of(model.config)
    norms = {n for n in (anatomy.input_norm, anatomy.mlp_norm) if n}
    reads = seen(model, [*anatomy.attention_input, *anatomy.mlp_input, *norms, ""])
    for norm, readers in ((anatomy.input_norm, anatomy.attention_input), (anatomy.mlp_norm, anatomy.mlp_input)):
        if norm:
            assert all(torch.equal(reads[reader][0], reads[norm][1].view_as(reads[reader][0])) for reader in readers)
    if anatomy.input_norm is None:
        assert all(torch.equal(reads[reader][0], reads[""][0]) for reader in anatomy.attention_input)
    left = {}
    handle = model.get_submodule(anatomy.final_norm).register_forward_hook(lambda m, i, out: left.update(state=out))
    table = model.get_output_embeddings()
    other = table.register_forward_pre_hook(lambda m, inputs: left.update(read=inputs[0]))
    logits(model)
    handle.remove()
    other.remove()
    assert torch.equal(left["state"], left["read"])


@pytest.mark.parametrize("name", CASES)
def test_heads_and_neurons_are_read_where_they_are_said_to_be(name):
    model = model_of(name)
    anatomy = anatomy_of(model.config)
    others = [part for part in (anatomy.query, anatomy.mlp) if part]
    reads = seen(model, [anatomy.attention_output, anatomy.activation, anatomy.mlp_output, *anatomy.mlp_input, *others])
    assert reads[anatomy.attention_output][0].shape == (2, 17, 6 * HEAD_DIM)
    before, after = reads[anatomy.activation]
    made = torch.cat([reads[linear][1] for linear in anatomy.mlp_input], -1)
    assert made.shape[-1] == (40 if anatomy.gated else 20)
    assert torch.equal(before, made[..., :20])
    neurons = reads[anatomy.mlp_output][0]
    assert torch.equal(neurons, after * made[..., 20:] if anatomy.gated else after)
    if anatomy.mlp:
        assert torch.equal(reads[anatomy.mlp][0], reads[anatomy.mlp_input[0]][0])
    if anatomy.query:
        assert reads[anatomy.query][1].shape == (2, 17, 6 * HEAD_DIM)


@pytest.mark.parametrize("name", CASES)
def test_states_are_read_after_the_norm_that_follows_or_as_they_are(name):
    model = model_of(name)
    anatomy = anatomy_of(model.config)
    distill = Distill(match_embedding=True, match_layer_output=("0:0", "last:last"), match_mlp_input=("1:1",))
    wanted = [pair.teacher for pair in pairs_of(distill, 3, 3)]
    with HiddenStateReader(model, wanted) as states:
        logits(model)
    width = model.config.hidden_size
    assert {state: tuple(value.shape) for state, value in states.items()} == dict.fromkeys(wanted, (2, 17, width))
    query, up = anatomy.attention_input[0], anatomy.mlp_input[0]
    reads = seen(model, [query, up])
    assert torch.equal(states["output", 1], reads[query][0])
    assert torch.equal(states["mlp", 1].flatten(0, 1), reads[up][0].reshape(-1, width))
    read = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda m, inputs: read.append(inputs[0]))
    logits(model)
    handle.remove()
    assert torch.equal(states["output", 3], read[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("config", [MixtralConfig(), Qwen3MoeConfig()])
def test_a_mixture_of_experts_is_refused(config):
    with refuses("teacher.model", "experts", config.model_type):
        anatomy_of(config)


ADVICE = "a line in lit_prune/models/families.py"


def refused(config):
    with pytest.raises(ConfigError) as raised:
        anatomy_of(config)
    assert raised.value.field == "teacher.model"
    assert "\n" not in str(raised.value)
    assert all(family in raised.value.problem for family in FAMILIES)
    return raised.value.problem


def test_other_models_are_refused_with_what_is_supported():
    assert "'bert'" in refused(BertConfig())
    assert "encoder-decoder" in refused(T5Config())
    assert all(word in refused(Gemma3Config()) for word in ("multimodal", "'gemma3'"))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "bamba", "falcon_h1", "recurrent_gemma"])
def test_models_with_convolutions_are_named_so_and_get_no_advice(family):
    message = refused(AutoConfig.for_model(family))
    assert all(word in message for word in ("convolutions", f"'{family}'"))
    assert ADVICE not in message


@pytest.mark.parametrize("family", ["gemma4_text", "bert", "rwkv", "falcon", "glm", "gpt_neo"])
def test_a_dense_model_that_is_not_built_like_llama_gets_no_advice_and_no_wrong_kind(family):
    message = refused(AutoConfig.for_model(family))
    assert f"'{family}'" in message
    assert not any(kind in message for kind in ("convolutions", "multimodal", "encoder", "experts"))
    assert ADVICE not in message


@pytest.mark.parametrize("family", sorted({"cwm", "internlm3", "iquestcoder"} - set(FAMILIES)))
def test_a_model_that_is_built_like_llama_is_refused_with_how_to_add_it(family):
    assert ADVICE in refused(AutoConfig.for_model(family))


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (OPTConfig(word_embed_proj_dim=512), "word_embed_proj_dim=512"),
        (OPTConfig(do_layer_norm_before=False), "do_layer_norm_before=False"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (GPT2Config(add_cross_attention=True), "add_cross_attention=True"),
        (PhiConfig(qk_layernorm=True), "qk_layernorm=True"),
        (StableLmConfig(qk_layernorm=True), "qk_layernorm=True"),
        (StableLmConfig(use_parallel_residual=True), "use_parallel_residual=True"),
    ],
)
def test_a_variant_that_is_built_in_another_way_is_refused(config, setting):
    with refuses("teacher.model", config.model_type, setting):
        anatomy_of(config)


def test_a_family_built_like_llama_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(FAMILIES, "internlm3", FAMILIES["mistral"])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("internlm3", **SIZES)).eval()
    check_pieces(model, "the model")
    whole = PrunePlan.everything(shape_of(model.config))
    blocks = tuple(LayerPlan(i, tuple(range(9)), (0, 1, 3, 4)) for i in (0, 2))
    student = surgery.apply(model, PrunePlan(whole.original, tuple(range(5, 29)), blocks))
    loaded, _ = reloaded(student, tmp_path)
    assert torch.equal(logits(loaded), logits(student))
    assert shape_of(loaded.config) == replace(
        whole.original, num_hidden_layers=2, hidden_size=24, intermediate_size=9, num_attention_heads=4
    )


def test_a_parameter_that_is_not_described_is_named():
    with refuses("teacher.model", "model.layers.0.mixer.conv"):
        FAMILIES["llama"].axes_of("model.layers.0.mixer.conv")


def test_where_every_head_has_its_own_keys_there_are_as_many_groups():
    assert shape_of(config_of("phi, MHA")).num_key_value_heads == MHA["num_key_value_heads"] == 6
    assert shape_of(config_of("gpt2")).num_key_value_heads == 6
