"""Puzzle: layers without effect are dropped, budgets are met, and impossible ones are refused before compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, LAYERS, context_of, small_llama
from refusals import refuses
from transformers import AutoModelForCausalLM

from lit_prune.methods import methods

NEURON, GROUP = 3 * 32, 6 * 8 * 32
"""Parameters of a unit: rows and columns of width 32; a group has two query heads of 8 channels, keys and values."""


@pytest.fixture(scope="module")
def model() -> Any:
    return small_llama()


def test_parts_without_effect_are_pruned(tmp_path: Path) -> None:
    model = small_llama()
    with torch.no_grad():
        for idle in (2, 5):
            model.model.layers[idle].self_attn.o_proj.weight.zero_()
            model.model.layers[idle].mlp.down_proj.weight.zero_()
        model.model.layers[6].self_attn.o_proj.weight[:, :16] = 0  # the first group
    size = model.num_parameters() - 2 * (NEURON * 40 + 2 * GROUP + 2 * 32) - GROUP
    found = methods["puzzle"](num_parameters=size).prune(model, context_of(tmp_path))
    assert found.model.num_parameters() == size
    assert [layer.index for layer in found.plan.layers] == [0, 1, 3, 4, 6, 7]
    assert [layer.heads for layer in found.plan.layers if layer.index == 6] == [(2, 3)]
    torch.testing.assert_close(found.model(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_parameters": 0.6, "no_op_layers": False},
        {"num_parameters": 0.6, "score": "loss", "width_criterion": "magnitude"},
        {"num_parameters": 0.2},
        {"num_parameters": None, "memory": 0.6, "cache_tokens": 500},
    ],
)
def test_budgets_are_met_and_the_student_generates(settings: dict[str, Any], model: Any, tmp_path: Path) -> None:
    method = methods["puzzle"](**settings)
    method.check(model.config)
    found = method.prune(model, context_of(tmp_path))
    achieved, total = found.achieved["num_parameters"], model.num_parameters()
    unit = NEURON if settings.get("num_parameters") == 0.6 and not settings.get("no_op_layers", True) else 40 * NEURON
    if "memory" in settings:
        groups = sum(len(layer.heads) // 2 for layer in found.plan.layers)
        achieved = 2 * (achieved + 2 * 8 * 500 * groups)
        assert achieved == found.achieved["memory"]
        total, unit = 2 * (total + 2 * 8 * 500 * 2 * LAYERS), 2 * (40 * NEURON + 2 * GROUP + 2 * 2 * 8 * 500)
    limit = round((settings.get("memory") or settings["num_parameters"]) * total)
    assert limit - unit < achieved <= limit
    found.model.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    cached, plain = (
        loaded.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_a_budget_that_cannot_be_reached_is_refused_before_compute(model: Any) -> None:
    for size in (0.02, 1.5, 100, model.num_parameters() + 1, None):
        with refuses("prune.num_parameters"):
            methods["puzzle"](num_parameters=size).check(model.config)
    with refuses("prune.num_parameters"):  # without no-ops, every layer keeps a tenth of its neurons and a quarter
        methods["puzzle"](num_parameters=0.2, no_op_layers=False).check(model.config)
    with refuses("prune.memory"):
        methods["puzzle"](num_parameters=None, memory=0.001).check(model.config)
    with refuses("prune.num_parameters"):
        methods["puzzle"](memory=0.5).check(model.config)
