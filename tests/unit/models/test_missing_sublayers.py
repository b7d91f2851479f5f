"""Models of which some layers have no attention or no MLP: the function, the cache, the files, the counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, generates_with_cache_as_without, logits, model_of, reloaded, token_ids
from fresh_process import generating
from pruning_context import context_of
from refusals import refuses
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from lit_prune.config import ConfigError, Distill, Lora
from lit_prune.distill.flops import recipe_flops
from lit_prune.distill.hidden_states import HiddenStateReader
from lit_prune.distill.objective import check_objective
from lit_prune.distill.trainable import targets_of, trained_part
from lit_prune.evaluate.memory import bytes_of_cache
from lit_prune.methods import methods
from lit_prune.models.families import FAMILIES, LIKE_LLAMA
from lit_prune.models.flops import forward_flops
from lit_prune.models.linears import linears_of
from lit_prune.models.loading import load_model
from lit_prune.models.shape import loading_module, num_parameters, shape_of, widths_of
from lit_prune.pruning import surgery
from lit_prune.pruning.masked import masked
from lit_prune.pruning.pad import pad_to_uniform
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts

LIKE = [name for name, (family, _) in CASES.items() if family in LIKE_LLAMA]


def plan_without(name: str, attention: tuple[int, ...] = (0,), mlp: tuple[int, ...] = (1,)) -> PrunePlan:
    """Some layers lack a sub-layer, and the last keeps seven neurons and one KV group."""
    plan = PrunePlan.everything(shape_of(model_of(name).config))
    heads = tuple(range(plan.original.num_attention_heads // plan.original.num_key_value_heads))
    layers = [*plan.layers[:-1], LayerPlan(len(plan.layers) - 1, tuple(range(7)), heads)]
    layers = [dataclasses.replace(one, heads=() if i in attention else one.heads) for i, one in enumerate(layers)]
    layers = [dataclasses.replace(one, neurons=() if i in mlp else one.neurons) for i, one in enumerate(layers)]
    return dataclasses.replace(plan, layers=tuple(layers))


def student_of(name: str, **absent: tuple[int, ...]) -> Any:
    return surgery.apply(model_of(name), plan_without(name, **absent))


def test_the_output_is_the_residual_stream_with_the_other_sublayer_alone() -> None:
    model, x = student_of("llama"), torch.randn(2, 5, 36)
    first, second, _ = model.model.layers
    assert {name.split(".")[0] for name, _ in first.named_parameters()} == {"mlp", "post_attention_layernorm"}
    assert {name.split(".")[0] for name, _ in second.named_parameters()} == {"self_attn", "input_layernorm"}
    norm = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * first.post_attention_layernorm.weight
    mlp = first.mlp
    added = (torch.nn.functional.silu(norm @ mlp.gate_proj.weight.T) * (norm @ mlp.up_proj.weight.T)) @ (
        mlp.down_proj.weight.T
    )
    torch.testing.assert_close(first(x), x + added)
    places = {"position_embeddings": model.model.rotary_emb(x, torch.arange(5)[None]), "attention_mask": None}
    attended, _ = second.self_attn(second.input_layernorm(x), **places)
    torch.testing.assert_close(second(x, **places), x + attended)


@pytest.mark.parametrize("name", LIKE)
def test_cut_masked_saved_and_loaded_it_computes_the_same(name: str, tmp_path: Path) -> None:
    whole, plan = model_of(name), plan_without(name)
    student = surgery.apply(whole, plan)
    with masked(whole, plan), torch.no_grad():
        torch.testing.assert_close(whole(token_ids()).logits, logits(student), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(surgery.apply(whole, plan, "mask")), logits(student), rtol=0, atol=1e-4)
    student.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert torch.equal(logits(loaded), logits(student))
    assert loading_module(loaded.config) == "lit_prune.models.transformed"
    assert generates_with_cache_as_without(loaded)
    count = loaded.num_parameters()
    assert (
        UnitCosts.parameters(whole.config).of(plan) == num_parameters(loaded.config) == count < whole.num_parameters()
    )
    widths = [widths_of(loaded.config, i) for i in range(3)]
    assert [(one.num_key_value_heads > 0, one.intermediate_size > 0) for one in widths] == [
        (False, True), (True, False), (True, True),
    ]  # fmt: skip


def test_a_fresh_process_loads_it_after_one_import_and_not_without(tmp_path: Path) -> None:
    student, prompt = student_of("llama"), token_ids()[:, :5]
    student.save_pretrained(tmp_path)
    with generating(prompt.tolist()) as load:
        found = load(tmp_path, loading_module(student.config))
    expected = student.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False, eos_token_id=None)
    assert found == {"tokens": expected.tolist(), "parameters": student.num_parameters()}


@pytest.mark.parametrize("name", LIKE)
def test_padded_with_zeros_it_is_a_stock_model_of_the_full_size(name: str, tmp_path: Path) -> None:
    student = student_of(name)
    padded = pad_to_uniform(student)
    loaded, config = reloaded(padded, tmp_path)
    assert loading_module(loaded.config) is None
    assert config["model_type"] == CASES[name][0]
    assert {"skip", "ranks", "shortcuts", "per_layer_config"}.isdisjoint(config)
    assert loaded.num_parameters() == model_of(name).num_parameters() > student.num_parameters()
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=1e-4)


ABSENT: list[dict[str, tuple[int, ...]]] = [
    {"attention": (0,)}, {"attention": (1,)}, {"attention": (0, 1)}, {"attention": (2,), "mlp": (0, 1)},
    {"attention": (0, 2), "mlp": (1,)},
]  # fmt: skip


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("name", ["llama", "ministral"])  # the second has sliding and full attention
def test_every_way_of_caching_yields_the_same_tokens(name: str, absent: dict[str, tuple[int, ...]]) -> None:
    model, ids = student_of(name, **{"mlp": ()} | absent), token_ids()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, use_cache=True, **options), plain)
    assert torch.equal(model.generate(ids, past_key_values=DynamicCache(config=model.config), **options), plain)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **options), plain)
    beams = [model.generate(ids, use_cache=cache, num_beams=3, **options) for cache in (True, False)]
    assert torch.equal(*beams)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding on the left
    padded = [model.generate(ids, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*padded)


def test_a_cache_that_knows_no_config_counts_the_tokens_of_layer_0_too() -> None:
    model, ids, cache = student_of("llama"), token_ids(), DynamicCache()
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache)
        assert cache.get_seq_length() == 9
        rest = model(ids[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(rest, logits(model)[:, 9:], rtol=0, atol=1e-4)


def test_keys_and_values_take_memory_only_where_there_is_attention() -> None:
    model, ids = student_of("llama"), token_ids()
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    assert bytes_of_cache(cache) == 4 * 2 * (2 + 1) * 4 * ids.numel()  # two KV groups and one, of four channels


def test_the_forward_pass_costs_what_torch_counts() -> None:
    student, ids = student_of("llama"), token_ids()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found, torch.no_grad():
        student(input_ids=ids, use_cache=False)
    assert found.get_total_flops() == ids.numel() * forward_flops(student.config, ids.shape[1], causal=False)


@pytest.mark.parametrize("part", [{}, {"train_last_layers": 1}])
def test_training_costs_what_torch_counts(part: dict[str, Any]) -> None:
    student, ids = student_of("qwen3", attention=(0, 2), mlp=(1,)), token_ids()
    distill = Distill(seq_len=17, kd_weight=0.0, ce_weight=1.0, **part)
    with trained_part(student, distill), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
        student(input_ids=ids, use_cache=False).logits.sum().backward()
    assert found.get_total_flops() == ids.numel() * recipe_flops(distill, student.config, causal=False)


def test_states_are_read_after_the_norm_that_follows_them() -> None:
    model, ids = student_of("llama"), token_ids()
    with HiddenStateReader(model, [("output", 0), ("output", 1), ("mlp", 0)]) as states, torch.no_grad():
        model(ids)
    first, second = model.model.layers[:2]
    embedded = model.model.embed_tokens(ids)
    torch.testing.assert_close(states["output", 0], first.post_attention_layernorm(embedded))
    torch.testing.assert_close(states["mlp", 0], states["output", 0])
    torch.testing.assert_close(states["output", 1], second.input_layernorm(first(embedded)))


def test_objectives_that_read_an_absent_sublayer_are_refused() -> None:
    whole, student = model_of("llama").config, student_of("llama").config
    check_objective(Distill(alpha=1.0, match_layer_output=("0:0", "1:1"), match_embedding=True), whole, student, 3)
    check_objective(
        Distill(alpha=1.0, match_mlp_input=("1:2",), match_attention=("0:1",), relation_heads=4), whole, student, 3
    )
    with refuses("distill.match_mlp_input", "layer 1 of the student"):
        check_objective(Distill(alpha=1.0, match_mlp_input=("1:1",)), whole, student, 3)
    with refuses("distill.match_attention", "layer 0 of the teacher"):
        check_objective(Distill(alpha=1.0, match_attention=("0:1",)), student, whole, 3)


def test_adapters_reach_linears_that_layer_0_does_not_have() -> None:
    names = targets_of(student_of("llama"), Lora(target_modules=("q_proj", "down_proj")))
    assert names == ["self_attn.q_proj", "mlp.down_proj"]


@pytest.mark.parametrize("name", list(methods))
def test_methods_zero_its_weights_or_refuse_it_in_one_line(name: str) -> None:
    method = methods[name]()
    if method.sparse:
        method.check(student_of("llama").config)
    else:
        with pytest.raises(ConfigError, match=r"^[a-z.]+: [^\n]+$"):
            method.check(student_of("llama").config)


def test_single_weights_of_it_are_zeroed_layer_by_layer(tmp_path: Path) -> None:
    student = student_of("llama")
    found = methods["wanda"](sparsity=0.5).prune(student, context_of(tmp_path, token_ids()))
    assert found.masks is not None
    assert set(found.masks) == {name for name, _ in linears_of(student)}
    assert all(abs(float(kept.float().mean()) - 0.5) < 0.05 for kept in found.masks.values())


def test_plans_without_a_sublayer_are_checked() -> None:
    config = model_of("llama").config
    plan_without("llama").check(config)
    for layers, words in (
        ({"attention": (0, 1, 2)}, "heads"), ({"mlp": (0, 1, 2)}, "neurons"),
        ({"attention": (1,), "mlp": (1,)}, "layer 1"),
    ):  # fmt: skip
        with refuses("plan", words):
            plan_without("llama", **{"attention": (), "mlp": ()} | layers).check(config)
    for family in set(FAMILIES) - set(LIKE_LLAMA):
        with refuses("plan", family):
            plan_without(family).check(model_of(family).config)


def test_a_plan_is_stored_with_its_empty_lists(tmp_path: Path) -> None:
    plan = plan_without("llama")
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    assert plan.sizes["num_key_value_heads"] == [0, 2, 1]
    assert plan.sizes["intermediate_size"] == [20, 0, 7]
