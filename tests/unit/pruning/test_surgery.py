"""Cutting a model: nothing kept is changed, masking and slicing are one function, and stock loading is exact."""

import copy

import pytest
import torch
from families import (
    CASES,
    HEAD_DIM,
    KINDS,
    config_of,
    generates_with_cache_as_without,
    logits,
    model_of,
    plan_for,
    reloaded,
    token_ids,
)
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

from lit_prune.config import ConfigError
from lit_prune.models.model_family import FAMILIES, anatomy_of, blocks_of
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.pad import pad_to_uniform
from lit_prune.pruning.plan import LayerPlan, Merge, PrunePlan

ROUNDS_TO_FLOAT32 = 1e-5
"""Tolerance where norms compute in float32 whatever the model is in, as all of transformers' own do."""
EXACT = 1e-11
"""Tolerance in float64 where nothing does."""


def tolerance(name):
    norms = [module for module in model_of(name).modules() if "Norm" in type(module).__name__]
    return EXACT if all(isinstance(norm, nn.LayerNorm) for norm in norms) else ROUNDS_TO_FLOAT32


def by_hand(model, plan):
    """The model with all that is not kept silenced by hooks on its modules; knows no parameter's axes."""
    model = copy.deepcopy(model)
    anatomy, whole = anatomy_of(model.config), plan.original
    gone = torch.ones(whole.hidden_size, dtype=torch.bool)
    gone[list(plan.hidden)] = False

    def without_channels(module, inputs, output):
        return output.masked_fill(gone, 0)

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(without_channels)
    norm_by_hand(model.get_submodule(anatomy.final_norm), plan.hidden, anatomy)
    kept = {block.index: block for block in plan.blocks}
    for index, block in enumerate(blocks_of(model)):
        if index not in kept:
            block.register_forward_hook(lambda module, inputs, output: inputs[0])
            continue
        heads = [head * HEAD_DIM + i for head in kept[index].heads for i in range(HEAD_DIM)]
        groups = {head // (whole.num_attention_heads // whole.num_key_value_heads) for head in kept[index].heads}
        keys = [group * HEAD_DIM + i for group in sorted(groups) for i in range(HEAD_DIM)]
        for name, units in ((anatomy.attention_output, heads), (anatomy.mlp_output, kept[index].neurons)):
            module = block.get_submodule(name)
            module.register_forward_pre_hook(lambda module, inputs, units=list(units): (only(inputs[0], units),))
            module.register_forward_hook(without_channels)
        for name, module in block.named_modules():
            if name in anatomy.wide_norms:
                norm_by_hand(module, heads if anatomy.wide_norms[name] == anatomy.query else keys, anatomy)
            elif "Norm" in type(module).__name__ and normalized(module) == whole.hidden_size:
                norm_by_hand(module, plan.hidden, anatomy)
    return model


def only(x, units):
    return torch.zeros_like(x).index_copy(-1, torch.tensor(units), x[..., units])


def normalized(norm):
    """Channels that a norm normalises together."""
    return norm.normalized_shape[-1] if isinstance(norm, nn.LayerNorm) else norm.weight.shape[-1]


def norm_by_hand(norm, kept, anatomy):
    """Let a norm normalise the kept channels only, written out."""
    kept, bias = list(kept), getattr(norm, "bias", None)

    def forward(x):
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        normed = x.double()[..., kept]
        if anatomy.norm == "layer":
            normed = normed - normed.mean(-1, keepdim=True)
        normed = normed / (normed.square().mean(-1, keepdim=True) + eps).sqrt()
        if norm.weight is not None:
            normed = normed * (norm.weight[kept] + anatomy.norm_offset)
        if bias is not None:
            normed = normed + bias[kept]
        return x.new_zeros(x.shape).index_copy(-1, torch.tensor(kept), normed)

    norm.forward = forward


def test_every_family_is_tested():
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("mode", ["slice", "mask"])
@pytest.mark.parametrize("name", CASES)
def test_keeping_everything_is_the_teacher_bit_for_bit(name, mode):
    model = model_of(name)
    whole = surgery.apply(model, PrunePlan.everything(shape_of(model.config)), mode)
    assert torch.equal(logits(whole), logits(model))
    assert whole.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_slicing_and_masking_are_the_model_with_the_other_units_silenced(name, kind):
    model, plan = model_of(name, torch.float64), plan_for(name, kind)
    sliced, masked = surgery.apply(model, plan), surgery.apply(model, plan, "mask")
    assert masked.num_parameters() >= sliced.num_parameters()
    assert shape_of(masked.config) == plan.original
    if kind != "uneven":
        assert shape_of(sliced.config) == plan.kept
    assert not torch.allclose(logits(sliced), logits(model), atol=1e-2)
    torch.testing.assert_close(logits(sliced), logits(masked), rtol=0, atol=tolerance(name))
    torch.testing.assert_close(logits(sliced), logits(by_hand(model, plan)), rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_loaded_by_stock_transformers_and_generates_with_cache(name, tmp_path):
    model = model_of(name)
    student = surgery.apply(model, plan_for(name, "all"))
    loaded, config = reloaded(student, tmp_path)
    assert (logits(loaded) - logits(student)).abs().max() == 0.0
    assert "per_layer_config" not in config
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    assert generates_with_cache_as_without(loaded)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_different_widths_are_saved_loaded_and_generate_with_cache(name, tmp_path):
    plan = plan_for(name, "uneven")
    student = surgery.apply(model_of(name), plan)
    loaded, config = reloaded(student, tmp_path)
    assert (logits(loaded) - logits(student)).abs().max() == 0.0
    assert generates_with_cache_as_without(loaded)
    assert len(config["per_layer_config"]) == 2  # the third is the widest
    anatomy = anatomy_of(config_of(name))
    for block, kept in zip(blocks_of(loaded), plan.blocks, strict=True):
        weight = block.get_submodule(anatomy.mlp_output).weight
        assert sorted(weight.shape) == sorted((len(plan.hidden), len(kept.neurons)))
        weight = block.get_submodule(anatomy.attention_output).weight
        assert sorted(weight.shape) == sorted((len(plan.hidden), len(kept.heads) * HEAD_DIM))
    with pytest.raises(ConfigError, match="its blocks differ in width"):
        shape_of(loaded.config)


@pytest.mark.parametrize("name", CASES)
def test_blocks_padded_to_the_widest_are_the_same_function_and_stock(name, tmp_path):
    plan = plan_for(name, "uneven")
    student = surgery.apply(model_of(name, torch.float64), plan)
    padded = pad_to_uniform(student)
    assert shape_of(padded.config) == plan.kept
    torch.testing.assert_close(logits(padded), logits(student), rtol=0, atol=tolerance(name))
    student = surgery.apply(model_of(name), plan)
    loaded, config = reloaded(pad_to_uniform(student), tmp_path)
    assert not [key for key in config if "per_layer" in key]
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=1e-4)
    assert generates_with_cache_as_without(loaded)


@pytest.mark.parametrize("name", [name for name in CASES if not anatomy_of(config_of(name)).tied_width])
def test_a_width_that_is_no_multiple_of_the_heads_is_refused_where_the_config_refuses_it(name):
    """Transformers' own check of a config says so, when a model is loaded."""
    config = config_of(name)
    try:
        type(config).from_dict(config.to_dict() | {"hidden_size": 35})
    except StrictDataclassError:
        assert anatomy_of(config).whole_heads
    else:
        assert not anatomy_of(config).whole_heads


def test_padding_a_uniform_model_changes_nothing():
    model = model_of("llama")
    padded = pad_to_uniform(model)
    assert padded is not model
    assert torch.equal(logits(padded), logits(model))


@pytest.mark.parametrize("name", CASES)
def test_surgery_leaves_the_teacher_and_the_random_state_alone(name):
    model = model_of(name)
    before, config, state = copy.deepcopy(model.state_dict()), model.config.to_dict(), torch.get_rng_state()
    for mode in ("slice", "mask"):
        surgery.apply(model, plan_for(name, "all"), mode)
    pad_to_uniform(surgery.apply(model, plan_for(name, "uneven")))
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_implementation_dtype_head_width_and_generation_settings_are_kept():
    model = AutoModelForCausalLM.from_config(config_of("llama"), attn_implementation="eager", dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [2, 5]
    for kind in ("all", "uneven"):
        student = surgery.apply(model, plan_for("llama", kind))
        assert student.config._attn_implementation == "eager"
        assert blocks_of(student)[0].self_attn.config._attn_implementation == "eager"
        assert student.dtype == torch.bfloat16
        assert student.config.head_dim == HEAD_DIM
        assert student.generation_config.eos_token_id == [2, 5]


def test_what_the_config_lists_by_block_goes_with_the_blocks_and_nothing_else_does():
    config = config_of("smollm3")
    config.eos_token_id = [2, 3, 4]  # as many as there are blocks
    whole = shape_of(config)
    everything = PrunePlan.everything(whole)
    plan = PrunePlan(whole, everything.hidden, everything.blocks[1:])
    smaller = surgery.smaller_config(config, plan)
    assert smaller.no_rope_layers == [0, 1]
    assert smaller.layer_types == ["full_attention"] * 2
    assert smaller.eos_token_id == [2, 3, 4]
    sliding = surgery.smaller_config(config_of("gemma2"), PrunePlan(whole, everything.hidden, everything.blocks[1:]))
    assert sliding.layer_types == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("name", "projection", "weight"),
    [
        ("qwen2", "self_attn.q_proj", 1.0),
        ("llama, tied, with biases", "self_attn.q_proj", -1.0),
        ("opt", "self_attn.q_proj", 1.0),
    ],
)
@pytest.mark.parametrize("mode", ["slice", "mask"])
def test_merged_queries_are_those_of_the_formula(name, projection, weight, mode):
    model = model_of(name)
    whole = PrunePlan.everything(shape_of(model.config))
    tied = anatomy_of(model.config).tied_width
    hidden = tuple(range(4 * HEAD_DIM)) if tied else whole.hidden
    # Head 4 takes in head 5, then head 0 what head 2 is: the second merge is of a head the first did not touch.
    merges = (Merge(4, 5, weight), Merge(0, 2, weight))
    blocks = tuple(LayerPlan(b.index, b.neurons, (0, 1, 3, 4), merges if b.index == 1 else ()) for b in whole.blocks)
    student = surgery.apply(model, PrunePlan(whole.original, hidden, blocks), mode)
    old, new = (blocks_of(m)[1].get_submodule(projection) for m in (model, student))
    rows = {head: slice(head * HEAD_DIM, (head + 1) * HEAD_DIM) for head in range(6)}
    for ours, theirs in ((new.weight[:, list(hidden)], old.weight[:, list(hidden)]), (new.bias, old.bias)):
        expected = {
            0: theirs[rows[0]] + weight * (theirs[rows[0]] - theirs[rows[2]]),
            1: theirs[rows[1]],
            3: theirs[rows[3]],
            4: theirs[rows[4]] + weight * (theirs[rows[4]] - theirs[rows[5]]),
        }
        for place, head in enumerate((0, 1, 3, 4)):
            found = ours[rows[head if mode == "mask" else place]]
            torch.testing.assert_close(found, expected[head], rtol=0, atol=1e-6)
    untouched = (blocks_of(m)[0].get_submodule(projection).bias for m in (model, student))
    first, second = (bias[: 2 * HEAD_DIM] for bias in untouched)
    assert torch.equal(first, second)


def test_merges_are_done_one_after_the_other():
    model = model_of("llama, MHA")
    whole = PrunePlan.everything(shape_of(model.config))
    # Head 1 takes in 2, and is then pruned itself and taken in by 0: 2 q0 - (2 q1 - q2).
    merged = LayerPlan(0, whole.blocks[0].neurons, (0, 3), (Merge(1, 2, 1.0), Merge(0, 1, 1.0)))
    student = surgery.apply(model, PrunePlan(whole.original, whole.hidden, (merged,)))
    q = blocks_of(model)[0].self_attn.q_proj.weight.unflatten(0, (6, HEAD_DIM))
    found = blocks_of(student)[0].self_attn.q_proj.weight.unflatten(0, (2, HEAD_DIM))
    torch.testing.assert_close(found, torch.stack((2 * q[0] - (2 * q[1] - q[2]), q[3])), rtol=0, atol=1e-6)


def test_gradients_flow_through_a_masked_model_to_what_is_kept_only():
    model, plan = model_of("nemotron"), plan_for("nemotron", "all")
    masked = surgery.apply(model, plan, "mask")
    masked(input_ids=token_ids(), labels=token_ids()).loss.backward()
    gradient = blocks_of(masked)[0].mlp.down_proj.weight.grad
    kept = [n for n in range(20) if gradient[list(plan.hidden), n].any()]
    assert kept == list(plan.blocks[0].neurons)


def test_a_shape_the_config_forbids_is_refused_in_a_line():
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [1.0] * 2}
    config = Phi3Config(
        vocab_size=96, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=6,
        max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=factors, pad_token_id=0,
    )  # fmt: skip
    whole = PrunePlan.everything(shape_of(config))
    plan = PrunePlan(whole.original, whole.hidden[:12], whole.blocks)
    with pytest.raises(ConfigError, match=r"^plan: the config of phi3 cannot express it \(.*short_factor.*\)$"):
        surgery.smaller_config(config, plan)


@pytest.mark.parametrize("dropped", range(5))
def test_dropping_a_block_of_a_real_model_is_masking_it(shared, dropped):
    folder = shared / "models/stories260K-hf"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    everything = PrunePlan.everything(shape_of(model.config))
    blocks = tuple(block for block in everything.blocks if block.index != dropped)
    plan = PrunePlan(everything.original, everything.hidden, blocks)
    sliced, masked = surgery.apply(model, plan), surgery.apply(model, plan, "mask")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    torch.testing.assert_close(logits(sliced, ids), logits(masked, ids), rtol=0, atol=ROUNDS_TO_FLOAT32)
    assert not torch.allclose(logits(sliced, ids), logits(model, ids), atol=0.1)
