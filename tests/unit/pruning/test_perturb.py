"""Random masks of units, the effects that follow from them, and removal within a limit."""

import contextlib
import dataclasses

import pytest
import torch
from measured import evidence_of
from pruning_context import IDS, LAYERS, small_llama

from lit_prune.config import Prune
from lit_prune.data.calibration import sample_sequences
from lit_prune.importance.criteria import criteria
from lit_prune.pruning import perturb, surgery
from lit_prune.pruning.perturb import Perturbable
from lit_prune.pruning.units import UnitSpace

PLACES = LAYERS * 2
"""Place of the first neuron: the two KV groups of each layer come before all neurons."""


def neuron(layer, number):
    return PLACES + 40 * layer + number


def group(layer, number):
    return 2 * layer + number


@pytest.fixture(scope="module")
def model():
    return small_llama()


@pytest.fixture
def space(model):
    return UnitSpace.of(model.config, 0.5)


@pytest.fixture
def everything(space):
    return torch.ones(space.size, dtype=torch.bool)


def seeded():
    return torch.Generator().manual_seed(3)


def test_pairs_of_masks_complement_each_other_and_follow_the_weights():
    masks = Perturbable(torch.arange(5), torch.tensor([1.0, 1.0, 1.0, 1e-6, 1e-6])).draw(400, seeded())
    assert masks.shape == (800, 5)
    assert (masks[0::2] ^ masks[1::2]).all()
    counts = masks[0::2].sum(1).bincount(minlength=6) / 400
    torch.testing.assert_close(counts, torch.tensor([1.0, 5.0, 10.0, 10.0, 5.0, 1.0]) / 32, rtol=0, atol=0.08)
    few = masks[0::2][masks[0::2].sum(1) <= 3]
    assert not few[:, 3:].any()  # the likely units come first
    alone = Perturbable(torch.arange(1), torch.ones(1)).draw(50, seeded())
    assert set(alone[0::2].flatten().tolist()) == {True, False}


def test_the_prior_of_a_group_is_the_mean_of_its_heads(model, space, everything, tmp_path):
    stats = evidence_of(model, IDS, tmp_path, perturb.PRIOR.needs)
    groups, neurons = space.split(perturb.prior(model, space, everything, lambda model, names: stats))
    scores = criteria["wanda_sp"].score(stats, Prune())
    assert torch.equal(neurons[2], scores["neuron"][2])
    heads = scores["head"][2]
    torch.testing.assert_close(groups[2], torch.stack([heads[:2].mean(), heads[2:].mean()]))


def test_the_lowest_scores_of_the_model_are_perturbed_but_the_best_of_no_layer(space, everything):
    scores = torch.zeros(space.size)
    groups, neurons = space.split(scores)
    neurons[:] = torch.arange(1.0, 41.0) * 10 ** torch.arange(LAYERS)[:, None]  # equal after division by the mean
    groups[:] = torch.stack([torch.ones(LAYERS), 2.0 + torch.arange(LAYERS)], dim=1)
    first, second = perturb.perturbable(space, everything, scores, 0.1)
    assert sorted(first.units.tolist()) == [neuron(layer, i) for layer in range(LAYERS) for i in range(4)]
    assert first.weights[0] > first.weights[-1]
    assert second.units.tolist() == [group(LAYERS - 1, 0), group(LAYERS - 2, 0)]
    assert [len(one.units) for one in perturb.perturbable(space, everything, scores, 1.0)] == [39 * LAYERS, LAYERS]
    fewer = everything.clone()
    fewer[[neuron(0, 0), neuron(3, 1)]] = False  # what is gone is perturbed no more
    assert not {neuron(0, 0), neuron(3, 1)} & set(perturb.perturbable(space, fewer, scores, 1.0)[0].units.tolist())


def test_where_every_layer_has_one_group_left_only_neurons_are_perturbed(space, everything):
    fewer = everything.clone()
    fewer[[group(layer, 0) for layer in range(LAYERS)]] = False
    neurons, groups = perturb.perturbable(space, fewer, torch.rand(space.size, generator=seeded()), 0.1)
    assert (len(neurons.units), len(groups.units)) == (32, 0)
    units = torch.cat([neurons.units, groups.units])
    assert torch.equal(units, neurons.units)
    assert groups.draw(3, seeded()).shape == (6, 0)


def test_planted_effects_are_found_and_the_smallest_units_removed(model, space, everything, monkeypatch):
    scores = torch.rand(space.size, generator=seeded())
    found = perturb.perturbable(space, everything, scores, 0.1)
    units = torch.cat([one.units for one in found])
    planted, lacking = torch.zeros(space.size), []
    planted[units] = torch.randn(len(units), generator=seeded())
    monkeypatch.setattr(perturb, "masked", lambda model, plan: contextlib.nullcontext(lacking.append(gone(plan))))
    monkeypatch.setattr(perturb, "mean_loss", lambda model, batches: 2.0 + float(planted[lacking[-1]].sum()))
    effects = perturb.effects(model, space, everything, found, {}, 60, seeded(), lambda done: None)
    torch.testing.assert_close(effects.float(), planted[units], rtol=0, atol=1e-3)
    neurons = units >= PLACES
    limit = space.cost(everything) - 5 * space.neuron_price
    left = perturb.remove(space, everything, units[neurons], effects[neurons], limit)
    lowest = sorted(units[neurons].tolist(), key=lambda unit: float(planted[unit]))
    assert set((~left).nonzero()[:, 0].tolist()) == set(lowest[:5])


def gone(plan):
    """The units that a plan lacks, by their places."""
    units = [neuron(one.index, i) for one in plan.layers for i in range(40) if i not in one.neurons]
    return units + [group(one.index, i) for one in plan.layers for i in range(2) if i not in plan.groups_of(one)]


def ranked(space, *order):
    """Units, and effects that put them in this order once they are divided by the price of a unit."""
    units = torch.tensor(order)
    return units, torch.arange(len(order)) * space.prices[units]


def test_removal_ends_at_the_limit_and_puts_back_what_fits(space, everything):
    total, pair = space.cost(everything), group(2, 1)
    order = ranked(space, neuron(0, 7), neuron(3, 1), pair, neuron(5, 5))
    left = perturb.remove(space, everything, *order, total - space.group_price)
    assert (~left).nonzero().tolist() == [[pair]]  # both neurons fit again beside the group
    assert space.cost(left) == total - space.group_price
    tight = perturb.remove(space, everything, *order, total - space.neuron_price - 1)
    assert space.cost(tight) == total - 2 * space.neuron_price
    units = torch.tensor([neuron(0, 7), pair])  # the group has less effect per parameter
    worth = torch.tensor([1.0, space.group_price / space.neuron_price - 0.1], dtype=torch.float64)
    by_worth = perturb.remove(space, everything, units, worth, total - space.group_price)
    assert (~by_worth).nonzero().tolist() == [[pair]]
    alone = perturb.remove(space, everything, units, worth, total - 1)
    assert (~alone).nonzero().tolist() == [[neuron(0, 7)]]


def test_one_layer_keeps_all_groups_where_the_family_needs_it(model, space, everything):
    order = ranked(space, *(group(layer, 0) for layer in range(LAYERS)))
    left = perturb.remove(space, everything, *order, 0)
    assert space.split(left)[0].sum(1).tolist() == [1] * (LAYERS - 1) + [2]
    surgery.smaller_config(model.config, space.plan_of(left))
    free = dataclasses.replace(space, needs_full_layer=False)
    assert space.split(perturb.remove(free, everything, *order, 0))[0].sum(1).tolist() == [1] * LAYERS
    units = perturb.perturbable(space, left, torch.ones(space.size), 1.0)[1].units.tolist()
    assert not {group(LAYERS - 1, 0), group(LAYERS - 1, 1)} & set(units)


def test_sequences_are_drawn_from_all_batches_without_replacement():
    batches = [{"input_ids": part, "labels": part + 1} for part in torch.arange(30).view(10, 3).split(4)]
    found = sample_sequences(batches, 6, seeded())
    assert found["input_ids"].shape == (6, 3)
    assert torch.equal(found["labels"], found["input_ids"] + 1)
    assert len(set(found["input_ids"][:, 0].tolist())) == 6
    assert len(sample_sequences(batches, 99, seeded())["input_ids"]) == 10
