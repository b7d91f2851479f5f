"""Effects of variants against models that surgery builds, and the choice of sizes against all combinations."""

import dataclasses
import itertools

import pytest
import torch
from measured import evidence_of
from pruning_context import IDS, LAYERS, small_llama

from lit_prune.config import Prune
from lit_prune.importance.criteria import criteria
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.replace_one import effects_of
from lit_prune.pruning.unit_costs import UnitCosts
from lit_prune.pruning.variants import Library


@pytest.fixture(scope="module")
def model():
    return small_llama()


@pytest.fixture(scope="module")
def scores(model, tmp_path_factory):
    evidence = evidence_of(model, IDS, tmp_path_factory.mktemp("stats"), ["importance"])
    return criteria["activation"].score(evidence, Prune())


@pytest.fixture
def library(model):
    return Library.of(UnitCosts.parameters(model.config), (0.5, 0.25), (0.5,), True)


def test_the_library_has_every_combination_and_the_cost_of_each_model(model, library, scores):
    assert library.sizes() == [(40, 2), (20, 2), (10, 2), (40, 1), (20, 1), (10, 1), (0, 0)]
    assert library.parts() == [(20, 2), (10, 2), (40, 1), (0, 0)]
    for size in library.sizes():
        plan = library.plan(scores, [size, *[(40, 2)] * (LAYERS - 1)], model.config)
        assert surgery.apply(model, plan).num_parameters() == library.of_model([size, *[(40, 2)] * (LAYERS - 1)])
    assert library.least() == library.of_model([(10, 2)])  # a config of Llama needs one full attention
    free = dataclasses.replace(library, needs_full_layer=False)
    assert free.least() == library.of_model([(10, 1)])
    assert dataclasses.replace(free, drops=False).least() == library.of_model([(10, 1)] * LAYERS)


def test_attention_and_mlp_can_go_alone(model, scores):
    costs = UnitCosts.parameters(model.config)
    library = Library.of(costs, (0.5,), (0.5,), True, True)
    assert library.sizes() == [(40, 2), (20, 2), (0, 2), (40, 1), (20, 1), (0, 1), (40, 0), (20, 0), (0, 0)]
    assert library.parts() == [(20, 2), (0, 2), (40, 1), (40, 0), (0, 0)]
    for size in library.sizes():
        sizes = [size, *[(40, 2)] * (LAYERS - 1)]
        plan = library.plan(scores, sizes, model.config)
        assert surgery.apply(model, plan).num_parameters() == library.of_model(sizes) == costs.of(plan)
    assert library.least() == library.of_model([(20, 2)])
    assert dataclasses.replace(library, drops=False).least() == library.of_model(
        [(20, 2), *[min([(20, 0), (0, 1)], key=library.cost)] * (LAYERS - 1)]
    )


def test_a_variant_keeps_the_units_with_the_highest_scores(model, library, scores):
    found = dict.fromkeys(range(LAYERS), 0)
    for index, plan in library.replacements(scores, model.config):
        size = library.parts()[found[index]]
        found[index] += 1
        assert [layer for layer in plan.layers if layer.index != index] == [
            layer for layer in PrunePlan.everything(shape_of(model.config)).layers if layer.index != index
        ]
        ours = [layer for layer in plan.layers if layer.index == index]
        if size == (0, 0):
            assert ours == []
            continue
        best = scores["neuron"][index].argsort(descending=True)[: size[0]]
        assert ours[0].neurons == tuple(sorted(best.tolist()))
        groups = scores["head"][index].view(2, 2).mean(1)
        heads = range(4) if size[1] == 2 else range(2 * int(groups.argmax()), 2 * int(groups.argmax()) + 2)
        assert ours[0].heads == tuple(heads)
    assert set(found.values()) == {len(library.parts())}


def test_effects_are_those_of_the_cut_models(model, library, scores):
    plans = list(library.replacements(scores, model.config))[:6]
    plans.append((5, library.plan(scores, [*[(40, 2)] * 5, (10, 1), (0, 0), (20, 2)], model.config)))
    plans.append((4, library.plan(scores, [*[(40, 2)] * 4, (0, 2), (40, 0), (0, 1), (20, 0)], model.config)))
    labels = IDS.clone()
    labels[1, 5:9] = -100
    batch, seen = {"input_ids": IDS, "labels": labels}, []
    kl = effects_of(model, plans, batch, "kl", seen.append)
    rise = effects_of(model, plans, batch, "loss", seen.append)
    scored = labels[:, 1:] != -100
    with torch.no_grad():
        whole = model(IDS).logits[:, :-1].double().log_softmax(-1)[scored]
        for i, (_, plan) in enumerate(plans):
            other = surgery.apply(model, plan)(IDS).logits[:, :-1].double().log_softmax(-1)[scored]
            assert kl[i] == pytest.approx(float((whole.exp() * (whole - other)).sum(-1).mean()), rel=1e-4)
            picked = labels[:, 1:][scored][:, None]
            assert rise[i] == pytest.approx(float((whole - other).gather(-1, picked).mean()), rel=1e-4, abs=1e-6)
    assert seen == [4 * i for i in range(1, len(plans) + 1)] * 2


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("sublayers", [True, False])
def test_the_chosen_sizes_are_the_best_of_all_combinations(share, sublayers):
    model = small_llama(num_hidden_layers=3)
    costs = UnitCosts.parameters(model.config)
    library = Library.of(costs, (0.5, 0.25), (0.5,), True, sublayers)
    generator = torch.Generator().manual_seed(int(10 * share))
    effects = torch.rand(3, len(library.parts()), generator=generator, dtype=torch.float64)
    limit = int(library.least() + share * (costs.total - library.least()))

    def effect(sizes):
        parts = [dict(zip(library.parts(), row.tolist(), strict=True)) for row in effects]
        return sum(
            known[size] if size == (0, 0) else known.get((size[0], 2), 0) + known.get((40, size[1]), 0)
            for known, size in zip(parts, sizes, strict=True)
        )

    fitting = [
        sizes
        for sizes in itertools.product(library.sizes(), repeat=3)
        if library.of_model(sizes) <= limit and any(size[1] == 2 and size[0] for size in sizes)
    ]
    best = min(fitting, key=effect)
    found = library.choose(effects.flatten().tolist(), limit)
    assert library.of_model(found) <= limit
    for ours, theirs in zip(found, best, strict=True):  # what was left is spent
        assert ours[0] >= theirs[0]
        assert ours[1] >= theirs[1]
        assert [not size for size in ours] == [not size for size in theirs]


def test_what_is_left_is_spent_where_neurons_matter_most():
    model = small_llama(num_hidden_layers=3)
    costs = UnitCosts.parameters(model.config)
    library = Library.of(costs, (0.5,), (), False)
    effects = [[1.0], [3.0], [2.0]]
    limit = costs.total - 20 * costs.neuron - 5 * costs.neuron - 3
    sizes = library.choose([value for row in effects for value in row], limit)
    assert sizes == [(20, 2), (40, 2), (34, 2)]  # two layers are narrowed; 14 neurons fit in the one that matters more
