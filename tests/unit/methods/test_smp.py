"""Static Model Pruning: gradients of the scores against float64, the schedule and the budget."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, context_of, small_llama
from torch import nn

from lit_prune.methods import methods
from lit_prune.pruning.learned.weight_scores import WeightScores

BATCH = {"input_ids": IDS, "labels": IDS}


def drawn(weight: torch.Tensor) -> torch.Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))


def learner(model: Any, **settings: Any) -> WeightScores:
    given = {"sparsity": 0.4, "ramp": 0.0, "penalty": 0.0, "lr": 0.02, "max_steps": 10} | settings
    return WeightScores(model, drawn, **given)


def gradients(module: WeightScores) -> list[torch.Tensor]:
    module.training_step(BATCH, 0).backward()
    return [scores.grad.double() for scores in module.scores]


def by_hand(model: Any) -> list[torch.Tensor]:
    """dL/dW' * W in float64, where W' has the 60 % of each matrix with the highest scores."""
    twin = copy.deepcopy(model).double()
    linears = [m for m in twin.model.layers.modules() if isinstance(m, nn.Linear)]
    dense = [m.weight.detach().clone() for m in linears]
    for linear in linears:
        scores = drawn(linear.weight)
        linear.weight.data *= scores >= scores.flatten().sort().values[round(0.4 * scores.numel())]
    twin(IDS, labels=IDS).loss.backward()
    return [linear.weight.grad * weight for linear, weight in zip(linears, dense, strict=True)]


def test_the_gradient_of_the_scores_is_that_of_the_masked_weights_times_the_dense_ones() -> None:
    model = small_llama()
    for found, expected in zip(gradients(learner(model)), by_hand(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        assert (found != 0).double().mean() > 0.99  # a pruned weight may return
    assert all(p.grad is None for p in model.parameters())


def test_the_penalty_is_the_mean_of_the_sigmoids() -> None:
    model = small_llama()
    without, with_it = gradients(learner(model)), gradients(learner(model, penalty=7.0))
    for bare, found in zip(without, with_it, strict=True):
        s = torch.sigmoid(drawn(bare).double())
        torch.testing.assert_close(found - bare, 7 * s * (1 - s) / s.numel() / len(without), rtol=1e-3, atol=1e-6)


def test_the_sparsity_rises_cubically() -> None:
    module = learner(small_llama(), ramp=0.5, max_steps=20)
    risen = [module.risen(step) for step in range(20)]
    assert risen[:2] == pytest.approx([0, 1 - 0.9**3])
    assert risen[5] == pytest.approx(1 - 0.5**3)
    assert risen[10:] == [1] * 10


def test_masks_keep_the_highest_scores_of_each_matrix_and_zeros_go_first() -> None:
    model = small_llama()
    first = model.model.layers[0].mlp.up_proj.weight
    first.data[:, 0] = 0
    masks = learner(model).masks(0.25)
    for name, kept in masks.items():
        assert int((~kept).sum()) == kept.numel() // 4
        if model.get_parameter(name) is not first:
            scores = drawn(kept)
            assert scores[kept].min() > scores[~kept].max()
    assert not masks["model.layers.0.mlp.up_proj.weight"][:, 0].any()


def test_only_zeros_are_new_and_others_than_by_magnitude(tmp_path: Path) -> None:
    model = small_llama()
    whole = methods["smp"](max_steps=4, batch_size=2, sparsity=0.3).prune(model, context_of(tmp_path / "whole"))
    for name, weight in model.state_dict().items():
        kept = whole.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(whole.model.state_dict()[name], weight * kept)
    magnitude = methods["magnitude"](sparsity=0.3).prune(model, context_of(tmp_path)).masks
    assert any(not torch.equal(magnitude[name], kept) for name, kept in whole.masks.items())


def test_training_lowers_the_loss_of_the_masked_model(tmp_path: Path) -> None:
    model, losses = small_llama(), []
    for steps in (1, 40):
        ctx = context_of(tmp_path / str(steps), checkpoint_seconds=1e9)
        found = methods["smp"](max_steps=steps, batch_size=4).prune(model, ctx).model
        with torch.no_grad():
            losses.append(found(IDS, labels=IDS).loss.item())
    assert losses[1] < losses[0] - 0.5
