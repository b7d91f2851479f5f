"""Bonsai: units without effect go first, budgets are met, and no gradient is computed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import context_of, small_llama
from refusals import refuses

from lit_prune.config.overrides import override
from lit_prune.methods import methods
from lit_prune.pipeline.expand import Entry
from lit_prune.pruning import perturb

NEURON, GROUP = 3 * 32, 6 * 8 * 32
"""Parameters of a unit: rows and columns of width 32; a group has two query heads of 8 channels, keys and values."""


def test_units_with_zero_output_weights_go_first(tmp_path: Path) -> None:
    model = small_llama(intermediate_size=8)
    ids = torch.randint(0, 64, (8, 24), generator=torch.Generator().manual_seed(0))
    idle = {2: [3], 5: [0, 1], 6: [2]}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(4)
            layer.self_attn.o_proj.weight.mul_(4)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):  # the model learns the text, so that it needs the other units
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        with torch.no_grad():
            for index, neurons in idle.items():
                model.model.layers[index].mlp.down_proj.weight[:, neurons] = 0
            model.model.layers[4].self_attn.o_proj.weight[:, 16:] = 0  # the second group
    size = model.num_parameters() - 8 * NEURON - GROUP  # twice as many neurons as are idle
    method = methods["bonsai"](num_parameters=size, num_masks=200, num_sequences=8, prune_fraction=0.1)
    found = method.prune(model, context_of(tmp_path, ids))
    assert found.model.num_parameters() == size
    for layer in found.plan.layers:
        assert not {*layer.neurons} & {*idle.get(layer.index, [])}
        assert layer.heads == ((0, 1) if layer.index == 4 else (0, 1, 2, 3))


@pytest.mark.parametrize("share", [0.9, 0.4])
def test_the_budget_is_met_by_less_than_one_unit(share: float, model: Any, tmp_path: Path) -> None:
    method = methods["bonsai"](num_parameters=share, num_masks=6, num_sequences=2, prune_fraction=0.2)
    found = method.prune(model, context_of(tmp_path))
    limit = round(share * model.num_parameters())
    assert limit - GROUP < found.model.num_parameters() <= limit
    assert found.achieved["num_parameters"] == found.model.num_parameters()
    assert found.requested == {"num_parameters": share, "memory": None}


def test_a_budget_of_memory_counts_weights_and_cache(model: Any, tmp_path: Path) -> None:
    method = methods["bonsai"](memory=0.7, num_parameters=None, cache_tokens=100, num_masks=6, num_sequences=2)
    found = method.prune(model, context_of(tmp_path))
    groups = sum(len(layer.heads) // 2 for layer in found.plan.layers)
    memory = 2 * (found.model.num_parameters() + 2 * 8 * 100 * groups)
    limit = round(0.7 * 2 * (model.num_parameters() + 2 * 8 * 100 * 16))
    assert limit - 2 * (GROUP + 2 * 8 * 100) < memory <= limit
    assert found.achieved["memory"] == memory
    with refuses("prune.num_parameters"):
        methods["bonsai"](memory=0.7).check(model.config)


def test_no_gradient_is_computed(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for place, name in ((torch.Tensor, "backward"), (torch.autograd, "backward"), (torch.autograd, "grad")):
        monkeypatch.setattr(place, name, lambda *args, **kwargs: calls.append(args))
    graphs = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    copies = methods["bonsai"](num_masks=4, num_sequences=2).prune(model, context_of(tmp_path))
    hook.remove()
    assert copies.plan is not None
    assert graphs
    assert not any(graphs)
    assert not calls


def test_the_seed_decides(model: Any, tmp_path: Path) -> None:
    method, ctx = methods["bonsai"](num_masks=6, num_sequences=2), context_of(tmp_path)
    other = dataclasses.replace(ctx, seed=1)
    plans = [method.prune(model, one).plan for one in (ctx, ctx, other)]
    assert plans[0] == plans[1] != plans[2]


def test_everything_is_kept_without_a_round(model: Any, tmp_path: Path) -> None:
    assert methods["bonsai"](num_parameters=1.0).prune(model, context_of(tmp_path)).model is model


def test_a_budget_that_cannot_be_reached_is_refused_before_compute(model: Any) -> None:
    for size in (0.05, 1.5, 100, model.num_parameters() + 1, None):
        with refuses("prune.num_parameters"):
            methods["bonsai"](num_parameters=size).check(model.config)


def test_a_plan_replaces_the_search(model: Any, tmp_path: Path) -> None:
    ctx = context_of(tmp_path)
    found = methods["bonsai"](num_masks=4, num_sequences=2).prune(model, ctx)
    found.plan.save(tmp_path / "plan.json")
    given = methods["bonsai"](plan_path=str(tmp_path / "plan.json"))
    assert given.prune(model, ctx).plan == found.plan
    assert given.statistics(model.config) == frozenset()
    assert given.config_of(model.config).to_dict() == found.model.config.to_dict()


def test_a_killed_search_is_resumed_through_the_pipeline(
    tiny_cell: Any, tiny_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"prune.method": "bonsai", "prune.num_masks": 4, "prune.num_sequences": 2, "prune.num_parameters": 0.9}
    cell, losses, kill_at = override(tiny_cell, few | {"distill.max_steps": 0}), list[float](), [6]

    def mean_loss(*given: Any) -> float:
        if len(losses) == kill_at[0]:
            raise KeyboardInterrupt
        losses.append(real(*given))
        return losses[-1]

    real = perturb.mean_loss
    monkeypatch.setattr(perturb, "mean_loss", mean_loss)
    with pytest.raises(KeyboardInterrupt):
        tiny_runner.run([Entry("row", 0, cell, {})])
    folder = tiny_runner.store.node(cell, "student").folder
    assert json.loads((folder / "measured.json").read_text()) == losses
    kill_at[0] = -1
    assert tiny_runner.run([Entry("row", 0, cell, {})]) == 0
    resumed, plan = list(losses), (folder / "plan.json").read_bytes()
    shutil.rmtree(folder)
    losses.clear()
    assert tiny_runner.run([Entry("row", 0, override(cell, {"seed": 1}), {})]) == 0  # the same student, anew
    assert losses == resumed
    assert (folder / "plan.json").read_bytes() == plan
