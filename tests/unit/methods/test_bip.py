"""BiP: the implicit gradient against a problem whose lower level is solved exactly, masks and budget."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import CASES, logits, model_of, token_ids
from pruning_context import IDS, small_llama
from refusals import refuses
from silenced import tolerance

from lit_prune.methods import methods
from lit_prune.pruning import surgery
from lit_prune.pruning.learned.bilevel import BilevelLearner, masked_columns
from lit_prune.pruning.units import UnitSpace

BATCH = {"input_ids": IDS, "labels": IDS}


def learner(model: Any, space: UnitSpace, **settings: Any) -> BilevelLearner:
    given = {"lr": 1e-3, "mask_lr": 0.01, "inverse_gamma": 0.5, "max_steps": 10} | settings
    start = torch.rand(space.size, generator=torch.Generator().manual_seed(0))
    return BilevelLearner(copy.deepcopy(model), start, space, **given)


def test_the_implicit_gradient_is_that_of_a_solved_lower_level() -> None:
    """For L(z) = c z the lower level is solved by theta* = -m c / gamma, so L(m theta*(m)) = -(m c)^2 / gamma.

    Its derivative with respect to m is (theta* - c / gamma) c at m = 1, and -c^2 / gamma at m = 0, where theta* = 0.
    """
    c, gamma = torch.tensor([0.3, -2.0]), 4.0
    m = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad((-((m * c) ** 2) / gamma).sum(), m)
    theta = -m.detach() * c / gamma
    torch.testing.assert_close(derivative, (theta - c / gamma) * c)


def test_gradients_of_masks_and_weights_against_float64() -> None:
    model = small_llama()
    space = UnitSpace.of(model.config, 0.8)
    module = learner(model, space)
    mask = space.chosen(module.scores)
    groups, neurons = space.split(mask.double())
    module.backward(module.training_step(BATCH, 0))
    lower, upper = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    for twin, ids in ((lower, IDS[:2]), (upper, IDS[2:])):
        for i, layer in enumerate(twin.model.layers):
            layer.mlp.down_proj.weight.data *= neurons[i]
            layer.self_attn.o_proj.weight.data *= groups[i].repeat_interleave(16)
        twin(ids, labels=ids).loss.backward()
    found = space.split(module.scores.grad.double())
    for i, (own, low, up) in enumerate(zip(model.model.layers, lower.model.layers, upper.model.layers, strict=True)):
        trained = module.model.model.layers[i]
        down = low.mlp.down_proj.weight.grad * neurons[i]
        torch.testing.assert_close(trained.mlp.down_proj.weight.grad.double(), down, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(
            trained.mlp.up_proj.weight.grad.double(), low.mlp.up_proj.weight.grad, rtol=1e-3, atol=1e-6
        )
        g = up.mlp.down_proj.weight.grad
        expected = ((own.mlp.down_proj.weight.double() - 0.5 * g) * g).sum(0)
        torch.testing.assert_close(found[1][i], expected, rtol=1e-3, atol=1e-6)
        g = up.self_attn.o_proj.weight.grad
        expected = ((own.self_attn.o_proj.weight.double() - 0.5 * g) * g).sum(0).view(2, 16).sum(1)
        torch.testing.assert_close(found[0][i], expected, rtol=1e-3, atol=1e-6)
    assert (found[1][neurons == 0] != 0).all()  # a pruned unit may return


def test_gradients_of_masks_where_weights_are_stored_transposed() -> None:
    model, ids = model_of("gpt2"), token_ids()
    space = UnitSpace.of(model.config, 0.9)
    module = learner(model, space).eval()  # without dropout
    mask = space.split(space.chosen(module.scores).double())[1]
    twin = copy.deepcopy(model).double()
    for row, layer in zip(mask, twin.transformer.h, strict=True):
        layer.mlp.c_proj.weight.data *= row[:, None]
    module.backward(module.training_step({"input_ids": ids.repeat(2, 1), "labels": ids.repeat(2, 1)}, 0))
    twin.eval()(ids, labels=ids).loss.backward()
    for row, ours, theirs in zip(
        space.split(module.scores.grad)[1], model.transformer.h, twin.transformer.h, strict=True
    ):
        gradient = theirs.mlp.c_proj.weight.grad
        expected = ((ours.mlp.c_proj.weight.double() - 0.5 * gradient) * gradient).sum(1)
        torch.testing.assert_close(row.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_masked_columns_act_as_the_plan_and_are_restored(case: str) -> None:
    model = model_of(case, torch.float64)
    space = UnitSpace.of(model.config, 0.9)
    scores = torch.rand(space.size, generator=torch.Generator().manual_seed(1))
    mask, before = space.chosen(scores), copy.deepcopy(model.state_dict())
    with torch.no_grad(), masked_columns(model, space, mask.double()):
        found = logits(model)
    torch.testing.assert_close(found, logits(surgery.apply(model, space.plan_of(mask))), rtol=0, atol=tolerance(case))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_without_two_halves_is_refused() -> None:
    with refuses("prune.batch_size", 3):
        methods["bip"](batch_size=3).check_settings()
