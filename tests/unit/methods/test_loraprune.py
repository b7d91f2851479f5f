"""LoRAPrune: its sensitivities against a computation in float64, the schedule, and a run that is killed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, model_of, token_ids
from pruning_context import IDS, LAYERS, context_of, small_llama, stop_at

from lit_prune.methods import methods
from lit_prune.models.shape import shape_of
from lit_prune.pruning.learned.lora_sensitivity import LoraPruner, pruned_share
from lit_prune.pruning.prune import first_units

BATCH = {"input_ids": IDS, "labels": IDS}


def learner(model: Any, target: Any, **settings: Any) -> LoraPruner:
    given = {
        "rank": 2, "alpha": 3.0, "dropout": 0.0, "lr": 1e-2, "decay": 0.9, "prune_every": 1, "variant": "paper",
        "max_steps": 10, "seed": 0,
    }  # fmt: skip
    return LoraPruner(copy.deepcopy(model), target, **given | settings)


def half(model: Any) -> Any:
    """A plan that keeps one of two groups and half of the neurons."""
    whole = shape_of(model.config)
    return first_units(model.config, type(whole)(LAYERS, whole.hidden_size, 20, 2, 1))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_sensitivities_are_those_of_a_model_with_explicit_adapters(variant: str) -> None:
    model = small_llama()
    module = learner(model, half(model), variant=variant)
    names = [n for n, p in model.model.layers[0].named_parameters() if p.dim() == 2]
    torch.manual_seed(0)
    for b in module.up:
        b.data.normal_(0, 0.1)
    module.training_step(BATCH, 0).backward()
    twin = copy.deepcopy(model).double()
    for i, layer in enumerate(twin.model.layers):
        for k, name in enumerate(names):
            a, b = (part[i * len(names) + k].detach().double() for part in (module.down, module.up))
            layer.get_parameter(name).data.add_(1.5 * b @ a)
    twin(IDS, labels=IDS).loss.backward()
    newest = torch.zeros_like(module.sensitivity)
    for i, place in enumerate(module._adapted):
        module._add(newest, place, module._estimated(i).detach())
    groups, neurons = module.space.split(newest.double())
    for i in (0, LAYERS - 1):
        of_group, of_neuron = torch.zeros(2, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
        for k, name in enumerate(names):
            place = i * len(names) + k
            a, b = module.down[place].detach().double(), module.up[place].detach().double()
            merged = twin.model.layers[i].get_parameter(name)
            of_a, of_b = 1.5 * b.T @ merged.grad, 1.5 * merged.grad @ a.T
            products = (of_b @ a + b @ of_a - of_b @ of_a) * merged.detach()
            products = products.abs() if variant == "official" else products.square()
            rows = products.T if name.endswith(("o_proj.weight", "down_proj.weight")) else products
            units = rows.reshape(2 if "self_attn" in name else 40, -1).sum(1)
            (of_group if "self_attn" in name else of_neuron).add_(
                units / units.norm() if variant == "official" else units
            )
        torch.testing.assert_close(groups[i], of_group, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(neurons[i], of_neuron, rtol=1e-3, atol=1e-9)


def test_the_schedule_is_cubic_between_a_tenth_and_nine_tenths() -> None:
    assert [pruned_share(step, 100) for step in (0, 10, 90, 99)] == [0, 0, 1, 1]
    assert pruned_share(50, 100) == pytest.approx(1 - 0.5**3)


def test_the_least_sensitive_units_go_first_and_none_returns() -> None:
    model = small_llama()
    module = learner(model, half(model))
    module.sensitivity.copy_(torch.arange(module.space.size))
    module.mask.copy_(module.kept(0.5))
    groups, neurons = module.space.split(module.mask)
    assert neurons[0].tolist() == [0.0] * 10 + [1.0] * 30
    assert groups.sum() == 16  # half of one group is none
    module.sensitivity.copy_(1000 - torch.arange(module.space.size))
    groups, neurons = module.space.split(module.kept(1.0))
    assert neurons[0].tolist() == [0.0] * 10 + [1.0] * 20 + [0.0] * 10
    assert groups[0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("case", CASES)
def test_merged_adapters_compute_what_they_did_apart(case: str) -> None:
    model = model_of(case)
    module = learner(model, first_units(model.config, shape_of(model.config)))
    torch.manual_seed(0)
    for b in module.up:
        b.data.normal_(0, 0.1)
    ids = token_ids()
    with torch.no_grad(), module._adapters():
        apart = module.model(ids, use_cache=False).logits
    plan, merged = module.finish()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids, use_cache=False).logits, apart, rtol=1e-3, atol=1e-3)
    assert plan.kept == shape_of(model.config)


def test_first_and_last_layers_stay_whole_and_the_adapters_alone_are_saved(tmp_path: Path) -> None:
    found = methods["loraprune"](max_steps=4, batch_size=2, spare_first=0.25).prune(small_llama(), context_of(tmp_path))
    assert found.plan is not None
    sizes = [(len(layer.neurons), len(layer.heads)) for layer in found.plan.layers]
    assert sizes == [(40, 4)] * 2 + [(20, 2)] * 5 + [(40, 4)]
    saved = torch.load(tmp_path / "training/1/last.ckpt")["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"down", "up", "sensitivity", "mask"}


def test_a_run_that_is_killed_between_two_prunings_resumes_with_its_mask(tmp_path: Path) -> None:
    chosen, model = methods["loraprune"](max_steps=5, batch_size=2, prune_every=2), small_llama()
    whole = chosen.prune(model, context_of(tmp_path / "whole"))
    stop_at(4, chosen, model, tmp_path / "cut")
    resumed = chosen.prune(model, context_of(tmp_path / "cut"))
    assert resumed.plan == whole.plan
    assert all(map(torch.equal, resumed.model.state_dict().values(), whole.model.state_dict().values()))
