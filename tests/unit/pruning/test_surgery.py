"""Cutting a model: kept weights are unchanged, masking and slicing give one function, and stock loading is exact."""

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
from refusals import refuses
from silenced import ROUNDS_TO_FLOAT32, by_hand, tolerance
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_prune.models.model_family import FAMILIES, anatomy_of, layers_of
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.pad import pad_to_uniform
from lit_prune.pruning.plan import LayerPlan, Merge, PrunePlan


def test_every_family_is_tested():
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("mode", ["slice", "mask"])
@pytest.mark.parametrize("name", CASES)
def test_keeping_everything_is_the_teacher_bit_for_bit(name, mode):
    model = model_of(name)
    whole = surgery.apply(model, PrunePlan.everything(shape_of(model.config)), mode)
    assert torch.equal(logits(whole), logits(model))
    assert whole.num_parameters() == model.num_parameters()


AXES = ("neurons", "heads", "hidden", "layers")
BUILT_DIFFERENTLY = ("llama", "gemma2", "olmo2", "phi3", "gpt_neox", "cohere", "gpt2", "opt", "helium")
"""Norms, fused projections, residual streams and head widths of every kind: each axis is cut alone in these."""
CUTS = [(name, kind) for name in CASES for kind in KINDS if kind not in AXES or name in BUILT_DIFFERENTLY]


@pytest.mark.parametrize(("name", "kind"), CUTS)
def test_slicing_and_masking_are_the_model_with_the_other_units_silenced(name, kind):
    model, plan = model_of(name, torch.float64), plan_for(name, kind)
    sliced, masked = surgery.apply(model, plan), surgery.apply(model, plan, "mask")
    assert masked.num_parameters() >= sliced.num_parameters()
    assert shape_of(masked.config) == plan.original
    if kind != "uneven":
        assert shape_of(sliced.config) == plan.kept
    found = logits(sliced)
    assert not torch.allclose(found, logits(model), atol=1e-2)
    torch.testing.assert_close(found, logits(masked), rtol=0, atol=tolerance(name))
    torch.testing.assert_close(found, logits(by_hand(model, plan)), rtol=0, atol=tolerance(name))


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
def test_layers_of_different_widths_are_saved_loaded_and_generate_with_cache(name, tmp_path):
    plan = plan_for(name, "uneven")
    student = surgery.apply(model_of(name), plan)
    loaded, config = reloaded(student, tmp_path)
    assert (logits(loaded) - logits(student)).abs().max() == 0.0
    assert generates_with_cache_as_without(loaded)
    assert len(config["per_layer_config"]) == 2  # the third is the widest
    anatomy = anatomy_of(config_of(name))
    for block, kept in zip(layers_of(loaded), plan.layers, strict=True):
        weight = block.get_submodule(anatomy.mlp_output).weight
        assert sorted(weight.shape) == sorted((len(plan.hidden), len(kept.neurons)))
        weight = block.get_submodule(anatomy.attention_output).weight
        assert sorted(weight.shape) == sorted((len(plan.hidden), len(kept.heads) * HEAD_DIM))
    with refuses("teacher.model"):
        shape_of(loaded.config)


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
    blocks = tuple(LayerPlan(b.index, b.neurons, (0, 1, 3, 4), merges if b.index == 1 else ()) for b in whole.layers)
    student = surgery.apply(model, PrunePlan(whole.original, hidden, blocks), mode)
    old, new = (layers_of(m)[1].get_submodule(projection) for m in (model, student))
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
    untouched = (layers_of(m)[0].get_submodule(projection).bias for m in (model, student))
    first, second = (bias[: 2 * HEAD_DIM] for bias in untouched)
    assert torch.equal(first, second)


def test_merges_are_done_one_after_the_other():
    model = model_of("llama, MHA")
    whole = PrunePlan.everything(shape_of(model.config))
    # Head 1 takes in 2, and is then pruned itself and taken in by 0: 2 q0 - (2 q1 - q2).
    merged = LayerPlan(0, whole.layers[0].neurons, (0, 3), (Merge(1, 2, 1.0), Merge(0, 1, 1.0)))
    student = surgery.apply(model, PrunePlan(whole.original, whole.hidden, (merged,)))
    q = layers_of(model)[0].self_attn.q_proj.weight.unflatten(0, (6, HEAD_DIM))
    found = layers_of(student)[0].self_attn.q_proj.weight.unflatten(0, (2, HEAD_DIM))
    torch.testing.assert_close(found, torch.stack((2 * q[0] - (2 * q[1] - q[2]), q[3])), rtol=0, atol=1e-6)


def test_gradients_flow_through_a_masked_model_to_what_is_kept_only():
    model, plan = model_of("nemotron"), plan_for("nemotron", "all")
    masked = surgery.apply(model, plan, "mask")
    masked(input_ids=token_ids(), labels=token_ids()).loss.backward()
    gradient = layers_of(masked)[0].mlp.down_proj.weight.grad
    kept = [n for n in range(20) if gradient[list(plan.hidden), n].any()]
    assert kept == list(plan.layers[0].neurons)


@pytest.mark.parametrize("dropped", range(5))
def test_dropping_a_block_of_a_real_model_is_masking_it(shared, dropped):
    folder = shared / "models/stories260K-hf"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    everything = PrunePlan.everything(shape_of(model.config))
    blocks = tuple(block for block in everything.layers if block.index != dropped)
    plan = PrunePlan(everything.original, everything.hidden, blocks)
    sliced, masked = surgery.apply(model, plan), surgery.apply(model, plan, "mask")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    torch.testing.assert_close(logits(sliced, ids), logits(masked, ids), rtol=0, atol=ROUNDS_TO_FLOAT32)
    assert not torch.allclose(logits(sliced, ids), logits(model, ids), atol=0.1)
