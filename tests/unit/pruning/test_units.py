"""Units with prices and a budget: projection, plans over all layers, and gates that act as pruning does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, logits, model_of, token_ids
from pruning_context import context_of, small_llama
from refusals import refuses
from silenced import tolerance

from lit_prune.methods import methods
from lit_prune.pruning import surgery
from lit_prune.pruning.gating import gated
from lit_prune.pruning.learned.mask_learner import next_token_loss
from lit_prune.pruning.units import UnitSpace


@pytest.fixture(scope="module")
def model() -> Any:
    return small_llama()


def drawn(space: UnitSpace, seed: int = 0) -> torch.Tensor:
    return torch.rand(space.size, generator=torch.Generator().manual_seed(seed))


def test_prices_by_hand(model: Any) -> None:
    """A group has two heads of 8 channels: 32 x 8 weights of each, of keys and of values, and 16 x 32 of the output."""
    space = UnitSpace.of(model.config, 0.5)
    assert (space.groups, space.group_price, space.neuron_price) == (2, 32 * 8 * 4 + 16 * 32, 3 * 32)
    assert space.fixed + float(space.prices.sum()) == model.num_parameters()
    assert space.budget == round(model.num_parameters() / 2)
    groups, neurons = space.split(torch.arange(space.size))
    assert (groups.shape, neurons.shape) == ((8, 2), (8, 40))
    assert (groups[1, 0], neurons[0, 0], neurons[1, 0]) == (2, 16, 56)


@pytest.mark.parametrize("case", CASES)
def test_a_plan_of_any_family_is_within_the_budget_and_applies(case: str) -> None:
    whole = model_of(case)
    space = UnitSpace.of(whole.config, 0.9)
    plan = space.plan(drawn(space))
    assert (
        0.9 * whole.num_parameters() - space.group_price - space.neuron_price
        < surgery.apply(whole, plan).num_parameters()
        <= round(0.9 * whole.num_parameters())
    )


def test_the_units_of_the_highest_scores_are_kept_whatever_their_layer(model: Any) -> None:
    space, scores = UnitSpace.of(model.config, 0.8), torch.full((8 * 42,), 0.5)
    groups, neurons = space.split(scores)
    groups[:] = 0.9
    neurons[:4] = torch.linspace(0.6, 0.8, 40)
    neurons[4:, 5:] = 0.1
    plan = space.plan(scores)
    assert [len(layer.heads) for layer in plan.layers] == [4] * 8
    assert [len(layer.neurons) for layer in plan.layers[:4]] == [40] * 4
    assert all(set(range(5)) <= set(layer.neurons) for layer in plan.layers[4:])
    assert len({len(layer.neurons) for layer in plan.layers[4:]}) > 1


def test_each_layer_keeps_its_best_units(model: Any) -> None:
    space = UnitSpace.of(model.config, 0.6)
    groups, neurons = space.split(scores := drawn(space))
    groups[3] = torch.tensor([0.0, 0.001])
    neurons[3] = 0.0
    neurons[3, 7] = 0.001
    layer = space.plan(scores).layers[3]
    assert (layer.heads, layer.neurons) == ((2, 3), (7,))


def test_the_heads_of_the_widest_layer_divide_the_hidden_size() -> None:
    """Of four groups of two heads, 1, 2 or 4 may stay, and not 3: six heads do not divide 32 channels."""
    wide = small_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    space = UnitSpace.of(wide.config, 0.8)
    assert space.group_counts == (1, 2, 4)
    scores = drawn(space)
    space.split(scores)[0][:, 3] = 0.0
    plan = space.plan(scores)
    assert max(len(layer.heads) for layer in plan.layers) in (2, 4, 8)
    surgery.apply(wide, plan)


def test_projection_is_within_the_budget_and_the_smallest_shift(model: Any) -> None:
    space = UnitSpace.of(model.config, 0.6)
    values = drawn(space) * 2
    projected, room = space.project(values), space.budget - space.fixed
    assert float(projected.double() @ space.prices) == pytest.approx(room, rel=1e-6)
    shift = (values - projected)[(projected > 0) & (projected < 1)]
    torch.testing.assert_close(shift, shift[0].expand(len(shift)))
    assert torch.equal(space.project(projected * 0.5), projected * 0.5)


@pytest.mark.parametrize("case", CASES)
def test_gates_of_zero_and_one_act_as_the_plan_does(case: str) -> None:
    whole = model_of(case, torch.float64)
    space = UnitSpace.of(whole.config, 0.9)
    mask = space.chosen(drawn(space))
    small, batch = surgery.apply(whole, space.plan_of(mask)), {"input_ids": token_ids(), "labels": token_ids()}
    with torch.no_grad(), gated(whole, space.gates(mask.double())):
        torch.testing.assert_close(logits(whole), logits(small), rtol=0, atol=tolerance(case))
        expected = torch.nn.functional.cross_entropy(logits(small)[:, :-1].flatten(0, 1), token_ids()[:, 1:].flatten())
        assert float(next_token_loss(whole, batch)) == pytest.approx(float(expected), abs=1e-4)


def test_a_budget_below_one_unit_of_each_kind_is_refused(model: Any) -> None:
    """The first layer keeps all of its groups, so that a config of this family can hold the widths."""
    space = UnitSpace.of(model.config, 0.9)
    least = space.fixed + 8 * (space.group_price + space.neuron_price) + space.group_price
    with refuses("prune.num_parameters", f"{least:,}"):
        UnitSpace.of(model.config, least - 1)
    plan = UnitSpace.of(model.config, least).plan(drawn(space))
    assert all(len(layer.neurons) >= 1 and len(layer.heads) >= 2 for layer in plan.layers)


def test_a_budget_in_bytes_is_kept_by_prices_in_bytes(model: Any, tmp_path: Path) -> None:
    chosen = methods["bypass_bp"](num_parameters=None, memory=0.7, cache_tokens=512, max_steps=1, batch_size=2)
    found = chosen.prune(model, context_of(tmp_path))
    costs, limit = chosen.budget(model.config)
    assert limit - costs.group < found.achieved["memory"] <= limit
    assert found.achieved["memory"] == costs.of(found.plan)
