"""Models with shortcuts and low-rank linears: built, saved, loaded, described, trained and counted as what they are."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, config_of, generates_with_cache_as_without, logits, token_ids
from paths import ROOT
from refusals import refuses
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from lit_prune.config import ConfigError, Distill, Lora
from lit_prune.distill.flops import recipe_flops
from lit_prune.distill.trainable import targets_of, trained_part
from lit_prune.methods import methods
from lit_prune.models.families import FAMILIES
from lit_prune.models.loading import load_model
from lit_prune.models.random_weights import random_model
from lit_prune.models.shape import loading_module, num_parameters
from lit_prune.models.transformed import LIKE_LLAMA, transformed_config
from lit_prune.pruning.shapes import keeps_all

NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
CHANGES: dict[str, dict[str, Any]] = {
    "shortcuts": {"shortcuts": True},
    "ranks": {"ranks": {"self_attn.q_proj": 5, "self_attn.o_proj": 7, "mlp.up_proj": 3}},
    "both": {"shortcuts": True, "ranks": {"self_attn.v_proj": 2, "mlp.down_proj": 6}},
}


def transformed(name: str, kind: str) -> Any:
    """A model of a family with random weights, far from zero, and changed layers."""
    model = random_model(transformed_config(config_of(name), **CHANGES[kind]))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "shortcuts"), ("llama", "ranks"), *((family, "both") for family in LIKE_LLAMA)]
)
def test_saved_and_loaded_it_is_as_its_description_says(family: str, kind: str, tmp_path: Path) -> None:
    model = transformed(family, kind)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))  # compares the model with the description of its family
    assert torch.equal(logits(loaded), logits(model))
    theirs, ours = loaded.config.to_dict(), model.config.to_dict()
    assert {name for name, value in theirs.items() if ours.get(name) != value} <= {
        "architectures",
        "dtype",
        "_name_or_path",
    }
    assert num_parameters(model.config) == model.num_parameters()
    assert generates_with_cache_as_without(loaded)
    assert len(loaded(token_ids(), output_hidden_states=True).hidden_states) == 4


def test_the_output_is_that_of_the_formulas() -> None:
    model = transformed("llama", "both")
    layer, x = model.model.layers[1], torch.randn(2, 5, 36)
    positions = model.model.rotary_emb(x, torch.arange(5)[None])
    attended, _ = layer.self_attn(layer.input_layernorm(x), position_embeddings=positions, attention_mask=None)
    between = x @ layer.attention_shortcut.weight.T + attended
    neurons = layer.post_attention_layernorm(between)
    neurons = layer.mlp.act_fn(layer.mlp.gate_proj(neurons)) * layer.mlp.up_proj(neurons)
    into, out = layer.mlp.down_proj
    expected = between @ layer.mlp_shortcut.weight.T + neurons @ (out.weight @ into.weight).T
    found = layer(x, position_embeddings=positions, attention_mask=None)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_fresh_process_loads_it_after_one_import_and_not_without(tmp_path: Path) -> None:
    model = transformed("llama", "both")
    model.save_pretrained(tmp_path)
    script = f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
except ValueError as error:
    assert "lit_prune_llama" in str(error)
import {loading_module(model.config)}
import torch
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
ids = torch.tensor({token_ids().tolist()})
print(model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = model.generate(token_ids(), max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=False)
    assert json.loads(done.stdout) == expected.tolist()


@pytest.mark.parametrize("kind", list(CHANGES))
@pytest.mark.parametrize("part", [{}, {"train_last_layers": 1}, pytest.param({"lora": Lora(rank=2)}, marks=NEEDS_PEFT)])
def test_its_training_costs_the_products_that_torch_counts(kind: str, part: dict[str, Any]) -> None:
    student, ids = transformed("qwen2", kind), token_ids()
    distill = Distill(seq_len=17, kd_weight=0.0, ce_weight=1.0, **part)
    config = copy.deepcopy(student.config)
    config.sliding_window = None  # the positions outside are computed and masked
    with trained_part(student, distill), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
        student(input_ids=ids, use_cache=False).logits.sum().backward()
    assert found.get_total_flops() == 34 * recipe_flops(distill, config, causal=False)


def test_adapters_reach_both_factors_of_a_linear_by_its_name() -> None:
    model = transformed("llama", "both")
    lora = Lora(target_modules=("v_proj", "self_attn.o_proj"))
    assert targets_of(model, lora) == ["self_attn.v_proj.0", "self_attn.v_proj.1", "self_attn.o_proj"]
    assert {"attention_shortcut", "mlp_shortcut"} < set(targets_of(model, Lora()))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_refused(family: str) -> None:
    config = config_of(family)
    if family not in LIKE_LLAMA:
        with pytest.raises(ConfigError):
            transformed_config(config)
        return
    changed = transformed_config(config, shortcuts=True)
    assert loading_module(config) is None
    assert not keeps_all(changed, config)
    whole: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"))
    methods["minitron"](**whole).check(changed)  # which keeps all
    for method in (methods["shortgpt"](), methods["minitron"](**whole | {"intermediate_size": 8})):
        with refuses("prune.method", "lit_prune"):
            method.check(changed)


def test_cases_of_every_family_are_there() -> None:
    assert set(LIKE_LLAMA) <= {family for family, _ in CASES.values()}
    assert AutoModelForCausalLM.from_config(transformed_config(config_of("llama"))).config.ranks is None
