"""Random masks of units, the effects that follow from them, and removal within a limit."""

import dataclasses

import pytest
import torch
from measured import evidence_of
from pruning_context import IDS, LAYERS, small_llama

from lit_prune.config import Prune
from lit_prune.data.calibration import sample_sequences
from lit_prune.importance.criteria import criteria
from lit_prune.models.shape import shape_of
from lit_prune.pruning import perturb, surgery
from lit_prune.pruning.perturb import Perturbable, Unit
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts


@pytest.fixture(scope="module")
def model():
    return small_llama()


@pytest.fixture
def costs(model):
    return UnitCosts.parameters(model.config)


@pytest.fixture
def whole(model):
    return PrunePlan.everything(shape_of(model.config))


def seeded():
    return torch.Generator().manual_seed(3)


def test_pairs_of_masks_complement_each_other_and_follow_the_weights():
    units = [Unit("neuron", 0, i) for i in range(5)]
    masks = Perturbable(units, torch.tensor([1.0, 1.0, 1.0, 1e-6, 1e-6])).draw(400, seeded())
    assert masks.shape == (800, 5)
    assert (masks[0::2] ^ masks[1::2]).all()
    counts = masks[0::2].sum(1).bincount(minlength=6) / 400
    torch.testing.assert_close(counts, torch.tensor([1.0, 5.0, 10.0, 10.0, 5.0, 1.0]) / 32, rtol=0, atol=0.08)
    few = masks[0::2][masks[0::2].sum(1) <= 3]
    assert not few[:, 3:].any()  # the likely units come first
    alone = Perturbable(units[:1], torch.ones(1)).draw(50, seeded())
    assert set(alone[0::2].flatten().tolist()) == {True, False}


def test_the_prior_of_a_group_is_the_mean_of_its_heads(model, tmp_path):
    stats = evidence_of(model, IDS, tmp_path, perturb.PRIOR.needs)
    found, scores = perturb.prior(stats), criteria["wanda_sp"].score(stats, Prune())
    assert torch.equal(found["neuron"][2], scores["neuron"][2])
    heads = scores["head"][2]
    torch.testing.assert_close(found["kv_group"][2], torch.stack([heads[:2].mean(), heads[2:].mean()]))


def test_the_lowest_scores_of_the_model_are_perturbed_but_the_best_of_no_layer(whole, costs):
    scores = {
        "neuron": [torch.arange(1.0, 41.0) * 10**i for i in range(LAYERS)],  # equal after division by the mean
        "kv_group": [torch.tensor([1.0, 2.0 + i]) for i in range(LAYERS)],
    }
    neurons, groups = perturb.perturbable(whole, scores, 0.1, costs)
    assert sorted(neurons.units) == [Unit("neuron", layer, i) for layer in range(LAYERS) for i in range(4)]
    assert neurons.weights[0] > neurons.weights[-1]
    assert groups.units == [Unit("kv_group", LAYERS - 1, 0), Unit("kv_group", LAYERS - 2, 0)]
    everything = perturb.perturbable(whole, scores, 1.0, costs)
    assert [len(one.units) for one in everything] == [39 * LAYERS, LAYERS]


def test_planted_effects_are_found_and_the_smallest_units_removed(model, whole, costs, monkeypatch):
    scores = {"neuron": [torch.rand(40, generator=seeded()) for _ in range(LAYERS)]}
    scores["kv_group"] = [torch.tensor([1.0, 2.0])] * LAYERS
    found = perturb.perturbable(whole, scores, 0.1, costs)
    units = [unit for one in found for unit in one.units]
    planted = dict(zip(units, torch.randn(len(units), generator=seeded()).tolist(), strict=True))
    lacking: list[set[Unit]] = []
    monkeypatch.setattr(perturb, "masked", lambda model, plan: _Recorded(lacking, whole, plan))
    monkeypatch.setattr(perturb, "mean_loss", lambda model, batches: 2.0 + sum(planted[u] for u in lacking[-1]))
    effects = perturb.effects(model, whole, found, [], 60, seeded(), lambda done: None)
    assert {unit: effect for effect, unit in effects} == pytest.approx(planted, abs=1e-3)
    limit = costs.total - 5 * costs.neuron
    left = perturb.remove(whole, [one for one in effects if one[1].axis == "neuron"], costs, limit)
    gone = {Unit("neuron", one.index, i) for one in left.layers for i in range(40) if i not in one.neurons}
    assert gone == set(sorted((unit for unit in units if unit.axis == "neuron"), key=planted.__getitem__)[:5])


class _Recorded:
    """Stands for a masked model: records the units that it lacks."""

    def __init__(self, lacking, whole, plan):
        gone = set()
        for before, after in zip(whole.layers, plan.layers, strict=True):
            gone |= {Unit("neuron", before.index, i) for i in before.neurons if i not in after.neurons}
            gone |= {Unit("kv_group", before.index, i) for i in {0, 1} - set(plan.groups_of(after))}
        lacking.append(gone)

    def __enter__(self):
        return None

    def __exit__(self, *error):
        return None


def ranked(order, costs):
    """Effects that put units in an order, once they are divided by the cost of a unit."""
    return [(i * (costs.neuron if unit.axis == "neuron" else costs.group), unit) for i, unit in enumerate(order)]


def test_removal_ends_at_the_limit_and_puts_back_what_fits(whole, costs):
    order = [Unit("neuron", 0, 7), Unit("neuron", 3, 1), Unit("kv_group", 2, 1), Unit("neuron", 5, 5)]
    left = perturb.remove(whole, ranked(order, costs), costs, costs.total - costs.group)
    assert costs.of(left) == costs.total - costs.group
    assert [len(one.neurons) for one in left.layers] == [40] * LAYERS  # both neurons fit again beside the group
    assert left.groups_of(left.layers[2]) == (0,)
    tight = perturb.remove(whole, ranked(order, costs), costs, costs.total - costs.neuron - 1)
    assert costs.of(tight) == costs.total - 2 * costs.neuron
    worth = [(1.0, Unit("neuron", 0, 7)), (float(costs.group) / costs.neuron - 0.1, Unit("kv_group", 2, 1))]
    by_worth = perturb.remove(whole, worth, costs, costs.total - costs.group)  # the group has less effect per parameter
    assert costs.of(by_worth) == costs.total - costs.group
    assert by_worth.layers[0].neurons == tuple(range(40))
    assert costs.of(perturb.remove(whole, worth, costs, costs.total - 1)) == costs.total - costs.neuron


def test_one_layer_keeps_all_groups_where_the_family_needs_it(model, whole, costs):
    order = [Unit("kv_group", layer, 0) for layer in range(LAYERS)]
    left = perturb.remove(whole, ranked(order, costs), costs, 0)
    assert [len(left.groups_of(one)) for one in left.layers] == [1] * (LAYERS - 1) + [2]
    surgery.smaller_config(model.config, left)
    free = dataclasses.replace(costs, needs_full_layer=False)
    assert all(len(left.groups_of(one)) == 1 for one in perturb.remove(whole, ranked(order, free), free, 0).layers)
    scores = {"neuron": [torch.ones(40)] * LAYERS, "kv_group": [torch.tensor([1.0, 2.0])] * LAYERS}
    last = LAYERS - 1
    assert all(unit.layer != last for unit in perturb.perturbable(left, scores, 1.0, costs)[1].units)


def test_sequences_are_drawn_from_all_batches_without_replacement():
    batches = [{"input_ids": part, "labels": part + 1} for part in torch.arange(30).view(10, 3).split(4)]
    found = sample_sequences(batches, 6, seeded())
    assert found["input_ids"].shape == (6, 3)
    assert torch.equal(found["labels"], found["input_ids"] + 1)
    assert len(set(found["input_ids"][:, 0].tolist())) == 6
    assert len(sample_sequences(batches, 99, seeded())["input_ids"]) == 10
