"""FASP against torch.linalg.lstsq in float64, layer by layer on the inputs that the pruned layers before it give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import model_of, token_ids
from pruning_context import IDS, LAYERS, context_of, small_llama
from refusals import refuses
from torch import Tensor

from lit_prune.importance.aggregate import double
from lit_prune.methods import methods
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning import surgery
from lit_prune.pruning.context import PruneContext

HEAD_DIM = 8


@torch.no_grad()
def inputs_of(model: Any, module: Any) -> Tensor:
    """The inputs of a module of a model over all tokens, float64 [tokens, width]."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    model(IDS)
    hook.remove()
    return double(seen[0])


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True)[:count].tolist())


def check_linear(x: Tensor, whole: Tensor, pruned: Tensor, columns: list[int], exact: bool) -> None:
    """Check that weights on some columns of x are as near the whole output as lstsq makes them, if `exact`, or nearer
    than those without correction."""
    output = x @ double(whole.detach()).T
    solution = torch.linalg.lstsq(x[:, columns], output).solution
    least = (output - x[:, columns] @ solution).norm()
    without = (output - x[:, columns] @ double(whole.detach())[:, columns].T).norm()
    ours = (output - x[:, columns] @ double(pruned.detach()).T).norm()
    assert least < 0.9 * without
    if exact:
        torch.testing.assert_close(double(pruned.detach()).T, solution, rtol=0, atol=1e-4)
    assert least <= ours * (1 + 1e-6)
    assert ours < without


@pytest.mark.parametrize("damping", [1e-9, 0.01, 1.0])
def test_each_layer_is_corrected_on_the_inputs_that_its_pruned_predecessors_give(
    model: Any, ctx: PruneContext, damping: float
) -> None:
    found = methods["fasp"](num_key_value_heads=1, damping=damping).prune(model, ctx)
    assert found.plan is not None
    mixed = copy.deepcopy(model)  # its first layers are those of the student
    for i, (plan, student) in enumerate(zip(found.plan.layers, found.model.model.layers, strict=True)):
        whole = mixed.model.layers[i]
        weight = whole.self_attn.o_proj.weight
        x = inputs_of(mixed, whole.self_attn.o_proj)
        scores = (double(weight.detach()).abs().sum(0) * x.norm(dim=0)).view(2, 2 * HEAD_DIM).sum(1)
        group = int(scores.argmax())
        columns = list(range(group * 2 * HEAD_DIM, (group + 1) * 2 * HEAD_DIM))
        assert plan.heads == (2 * group, 2 * group + 1)
        assert torch.equal(student.self_attn.q_proj.weight, whole.self_attn.q_proj.weight[columns])
        check_linear(x, weight, student.self_attn.o_proj.weight, columns, damping == 1e-9)

        whole.self_attn = student.self_attn
        weight = whole.mlp.down_proj.weight
        x = inputs_of(mixed, whole.mlp.down_proj)
        neurons = best(double(weight.detach()).abs().sum(0) * x.norm(dim=0), 30)
        assert list(plan.neurons) == neurons
        assert torch.equal(student.mlp.up_proj.weight, whole.mlp.up_proj.weight[neurons])
        check_linear(x, weight, student.mlp.down_proj.weight, neurons, damping == 1e-9)
        mixed.model.layers[i] = student


def test_without_correction_the_weights_stay(model: Any, ctx: PruneContext) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = methods["fasp"](correction=False).prune(model, ctx)
    assert found.plan is not None
    cut = surgery.apply(model, found.plan).state_dict()
    assert all(torch.equal(weight, cut[name]) for name, weight in found.model.state_dict().items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert len(found.plan.layers) == LAYERS


def test_neurons_that_never_fire_change_nothing(ctx: PruneContext) -> None:
    model = small_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[::4] = 0
        found = methods["fasp"]().prune(model, ctx)
        assert found.plan is not None
        assert {layer.neurons for layer in found.plan.layers} == {tuple(i for i in range(40) if i % 4)}
        torch.testing.assert_close(found.model(IDS).logits, model(IDS).logits)


def test_a_plan_from_a_file_is_cut_without_correction(model: Any, ctx: PruneContext, tmp_path: Path) -> None:
    found = methods["fasp"]().prune(model, ctx)
    assert found.plan is not None
    found.plan.save(tmp_path / "plan.json")
    given = methods["fasp"](plan_path=str(tmp_path / "plan.json"))
    again, cut = given.prune(model, ctx), surgery.apply(model, found.plan)
    assert again.plan == found.plan
    assert given.config_of(model.config).to_dict() == again.model.config.to_dict()
    assert all(map(torch.equal, again.model.state_dict().values(), cut.state_dict().values()))


@pytest.mark.parametrize("name", ["gpt2", "opt", "phi3", "gpt_neox", "gemma2", "olmo2", "starcoder2"])
def test_the_output_projection_of_every_family_is_corrected(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    found = methods["fasp"](intermediate_size=15).prune(model, context_of(tmp_path, token_ids()))
    assert found.plan is not None
    path = f"{anatomy_of(model.config).mlp_output}.weight"
    cut = surgery.apply(model, found.plan)
    for ours, plain in zip(layers_of(found.model), layers_of(cut), strict=True):
        changed = {name for name, p in ours.named_parameters() if not torch.equal(p, plain.get_parameter(name))}
        assert changed == {path}


def test_groups_under_norms_of_all_heads_are_refused() -> None:
    with refuses("prune.num_key_value_heads", "olmo2", "1"):
        methods["fasp"](num_key_value_heads=1).check(model_of("olmo2").config)
