"""Costs of plans against the models that surgery builds, and plans within a limit."""

import dataclasses

import pytest
from families import CASES, config_of, model_of, plan_for
from refusals import refuses

from lit_prune.models.model_family import FAMILIES
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts

FEW = ("llama", "llama, tied, with biases", "llama, MHA", "gemma2", "olmo2", "phi3", "gpt2", "opt", "nemotron")


@pytest.mark.parametrize("name", FEW)
def test_the_cost_of_a_plan_is_the_number_of_parameters_of_its_model(name):
    model, plan = model_of(name), plan_for(name, "uneven")
    costs = UnitCosts.parameters(model.config)
    if not costs.prunes_groups:  # heads are as wide as the stream
        whole = PrunePlan.everything(plan.original).layers
        layers = (dataclasses.replace(one, heads=whole[one.index].heads) for one in plan.layers)
        plan = dataclasses.replace(plan, layers=tuple(layers))
    else:  # whole groups
        heads = {one.index: costs.whole.heads_of(plan.groups_of(one)) for one in plan.layers}
        layers = (dataclasses.replace(one, heads=heads[one.index]) for one in plan.layers)
        plan = dataclasses.replace(plan, layers=tuple(layers))
    for one in (plan, dataclasses.replace(plan, layers=plan.layers[::2])):
        assert costs.of(one) == surgery.apply(model, one).num_parameters()
    assert costs.prunes_groups != FAMILIES[CASES[name][0]].tied_width
    assert costs.of(PrunePlan.everything(shape_of(model.config))) == costs.total == model.num_parameters()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_even_plans_stay_within_the_limit_by_less_than_one_unit(name, share):
    config = config_of(name)
    costs = UnitCosts.parameters(config)
    least = costs.of(costs.smallest())
    limit = round(least + share * (costs.total - least))
    plan = costs.even(limit)
    plan.check(config)
    surgery.smaller_config(config, plan)
    assert limit - max(costs.neuron, costs.group) < costs.of(plan) <= limit


def test_a_limit_is_a_share_or_a_count_within_what_can_be_reached():
    costs = UnitCosts.parameters(config_of("llama"))
    least = costs.of(costs.smallest())
    assert costs.limit(0.9, "prune.num_parameters", least) == round(0.9 * costs.total)
    assert costs.limit(least, "prune.num_parameters", least) == least
    for wrong in (0.0, 1.5, None, "auto", least - 1, costs.total + 1, 0.01):
        with refuses("prune.num_parameters"):
            costs.limit(wrong, "prune.num_parameters", least)
