"""Adapters on 4-bit weights: the student is the model that was trained, with the weights that NF4 holds."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from families import CASES, logits, model_of
from partly_trained import NEEDS_QLORA, QLORA, changed, recipe, trainable
from refusals import refuses

from lit_prune.distill.trainable import check_trained, trained_part


def nf4(weight: Any) -> Any:
    """A matrix as NF4 holds it, without double quantisation: per 64 values the nearest code times their maximum."""
    lower = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    upper = [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    codes, blocks = torch.tensor(lower + upper, dtype=torch.float64), weight.double().reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scales).unsqueeze(-1) - codes).abs().argmin(-1)
    return (codes[nearest] * scales).reshape(weight.shape)


@NEEDS_QLORA
def test_without_a_step_the_student_has_the_weights_that_nf4_holds(tiny_llama):
    """The codes are printed in QLoRA, appendix E. Double quantisation rounds the scales to 8 bits, so that a weight
    halfway between two codes may go to the other one."""
    model = copy.deepcopy(tiny_llama)
    with trained_part(model, recipe(lora=QLORA)):
        pass
    linears = {n for n in model.state_dict() if n.endswith("_proj.weight")}
    assert changed(tiny_llama, model) == linears
    for name in linears:
        before, after = tiny_llama.state_dict()[name], model.state_dict()[name]
        assert after.dtype == before.dtype
        assert all(len(block.unique()) <= 16 for block in after.reshape(-1, 64))
        least = (nf4(before) - before).abs()
        assert ((after - before).abs() <= least + 0.02 * before.abs().max()).all()


@NEEDS_QLORA
@pytest.mark.parametrize("name", [name for name in CASES if name != "gpt2"])
def test_the_student_of_every_family_is_the_model_that_was_trained_on_4_bit_weights(name):
    model = copy.deepcopy(model_of(name))
    before = model.state_dict()
    with trained_part(model, recipe(lora=QLORA)):
        assert all("lora_" in parameter for parameter in trainable(model))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        model.eval()
        adapted = logits(model)
    after = model.state_dict()
    assert {n: (p.shape, p.dtype) for n, p in after.items()} == {n: (p.shape, p.dtype) for n, p in before.items()}
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=2e-4)


@NEEDS_QLORA
def test_masked_weights_stay_zero_on_4_bit_weights(tiny_llama):
    model, name = copy.deepcopy(tiny_llama), "model.layers.0.mlp.up_proj.weight"
    kept = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)) > 0.5
    model.get_parameter(name).data *= kept
    with trained_part(model, recipe(lora=QLORA), {name: kept}):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.get_parameter(name) != 0, kept)


def test_4_bit_weights_without_bitsandbytes_are_refused(tiny_llama, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with refuses("distill.lora.quantize", "bitsandbytes", "lit-prune[qlora]"):
        check_trained(recipe(lora=QLORA), tiny_llama.config, 3)


@NEEDS_QLORA
def test_4_bit_weights_of_linears_of_another_class_are_refused():
    with refuses("distill.lora.quantize", "gpt2"):
        check_trained(recipe(lora=QLORA), model_of("gpt2").config, 3)
