"""edge-popup: the random weights, gradients of the scores against float64, and what is drawn."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, context_of, small_llama
from refusals import refuses
from torch import nn

from lit_prune.methods import methods
from lit_prune.pruning.learned.weight_scores import WeightScores, draw_signed_constants, uniform_scores


def drawn_model() -> tuple[Any, torch.Generator]:
    model, generator = small_llama(attention_bias=True), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(1.0)
    draw_signed_constants(model, generator)
    return model, generator


def linears(model: Any) -> list[nn.Linear]:
    return [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]


def test_weights_are_signed_constants_and_scores_uniform() -> None:
    model, generator = drawn_model()
    draw = uniform_scores(generator)
    for linear in linears(model):
        fan_in = linear.weight.shape[1]
        torch.testing.assert_close(linear.weight.abs(), torch.full_like(linear.weight, math.sqrt(2 / fan_in)))
        assert (linear.weight > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
        scores = draw(linear.weight.detach()) * math.sqrt(fan_in)
        assert scores.abs().max() <= 1
        assert scores.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.05)
        assert linear.bias is None or not linear.bias.any()


def test_the_gradient_of_the_scores_is_signed_and_the_highest_absolute_scores_are_kept() -> None:
    model, generator = drawn_model()
    module = WeightScores(
        model, uniform_scores(generator), sparsity=0.4, ramp=0.0, penalty=0.0, lr=0.1, max_steps=10, rank=torch.abs
    )
    twin = copy.deepcopy(model).double()
    for linear, scores in zip(linears(twin), module.scores, strict=True):
        s = scores.detach().abs()
        linear.weight.data *= s >= s.flatten().sort().values[round(0.4 * s.numel())]
    twin(IDS, labels=IDS).loss.backward()
    module.training_step({"input_ids": IDS, "labels": IDS}, 0).backward()
    for own, masked, scores in zip(linears(model), linears(twin), module.scores, strict=True):
        expected = masked.weight.grad * own.weight.double() * scores.detach().double().sign()
        torch.testing.assert_close(scores.grad.double(), expected, rtol=1e-3, atol=1e-6)


def test_only_linears_are_drawn(tmp_path: Path) -> None:
    chosen, model = methods["edge_popup"](max_steps=4, batch_size=2), small_llama()
    whole, other = (chosen.prune(model, context_of(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    for name, weight in model.state_dict().items():
        found = whole.model.state_dict()[name]
        assert torch.equal(found, weight) == (name not in whole.masks)
        assert torch.equal(found, other.model.state_dict()[name]) == (name not in whole.masks)
        if name in whole.masks:
            assert found.count_nonzero() == found.numel() // 2


def test_training_finds_a_better_subnetwork_of_the_same_random_weights(tmp_path: Path) -> None:
    losses = []
    for steps, lr in ((1, 1e-9), (40, 0.01)):
        ctx = context_of(tmp_path / str(steps), checkpoint_seconds=1e9)
        found = methods["edge_popup"](max_steps=steps, batch_size=4, lr=lr).prune(small_llama(), ctx).model
        with torch.no_grad():
            losses.append(found(IDS, labels=IDS).loss.item())
    assert losses[1] < losses[0] - 0.5


def test_masks_of_another_run_are_refused() -> None:
    with refuses("prune.plan_path", "masks.safetensors"):
        methods["edge_popup"](plan_path="masks.safetensors").check(small_llama().config)
