"""A masked model computes the logits of the model that surgery cuts, and is unchanged afterwards."""

import dataclasses

import pytest
import torch
from families import CASES, config_of, logits, model_of, plan_for, token_ids
from silenced import tolerance

from lit_prune.models.model_family import FAMILIES
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.masked import masked, mean_loss
from lit_prune.pruning.plan import Merge, PrunePlan


def plan_of(name: str) -> PrunePlan:
    """A plan with layers of different widths; where heads are as wide as the stream, of neurons and layers alone."""
    plan = plan_for(name, "uneven")
    if FAMILIES[CASES[name][0]].tied_width:
        whole = PrunePlan.everything(shape_of(config_of(name))).layers
        layers = (dataclasses.replace(one, heads=whole[one.index].heads) for one in plan.layers)
        plan = dataclasses.replace(plan, layers=tuple(layers))
    return plan


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_masked_logits_are_those_of_the_cut_model(name, dropped):
    model, plan = model_of(name, torch.float64), plan_of(name)
    if dropped:
        plan = dataclasses.replace(plan, layers=(plan.layers[0], plan.layers[2]))
    before = logits(model)
    with masked(model, plan):
        found = logits(model)
    assert not torch.allclose(found, before, atol=1e-2)
    torch.testing.assert_close(found, logits(surgery.apply(model, plan)), rtol=0, atol=tolerance(name))
    assert torch.equal(logits(model), before)


def test_hooks_are_removed_after_an_error():
    model, plan = model_of("llama"), plan_of("llama")
    before = logits(model)
    with pytest.raises(KeyError), masked(model, plan):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_what_hooks_cannot_mask_is_refused():
    plan = plan_of("llama")
    first = dataclasses.replace(plan.layers[0], merges=(Merge(0, 5, 1.0),))
    for other in (
        dataclasses.replace(plan, hidden=plan.hidden[1:]),
        dataclasses.replace(plan, layers=(first, *plan.layers[1:])),
    ):
        with pytest.raises(ValueError, match="masked"), masked(model_of("llama"), other):
            pass


def test_the_loss_is_the_mean_over_scored_tokens_of_all_batches():
    model = model_of("llama")
    ids = token_ids()
    labels = ids.clone()
    labels[0, 3:] = -100
    batches = [{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}]
    expected = torch.nn.functional.cross_entropy(
        logits(model)[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert mean_loss(model, batches) == pytest.approx(float(expected), rel=1e-6)
