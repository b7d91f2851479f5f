"""Wanda against an independent computation in float64 over whole forward passes of the pruned model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, LAYERS, context_of
from torch import nn

from lit_prune.methods import methods
from lit_prune.pruning.masks import check_zero


def inputs_of(model: Any, linears: list[nn.Module]) -> dict[nn.Module, torch.Tensor]:
    """What the linears read in a pass over the calibration sequences: [batch, seq, in]."""
    inputs: dict[nn.Module, torch.Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, given: inputs.update({m: given[0]})) for m in linears]
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    return inputs


def by_hand(model: Any, keep: Any) -> Any:
    """A float64 copy, pruned layer by layer: the inputs of a layer come from a pass of the model as it is then."""
    pruned = copy.deepcopy(model).double()
    for index in range(LAYERS):
        linears = [m for m in pruned.model.layers[index].modules() if isinstance(m, nn.Linear)]
        for linear, read in inputs_of(pruned, linears).items():
            score = linear.weight.detach().abs() * read.flatten(0, 1).norm(dim=0)
            linear.weight.data[~keep(score)] = 0
    return pruned


def lower_half_of_a_row(score: torch.Tensor) -> torch.Tensor:
    return score >= score.sort(dim=1).values[:, score.shape[1] // 2, None]


def two_of_four(score: torch.Tensor) -> torch.Tensor:
    groups = score.view(len(score), -1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2).indices, True).view(score.shape)


@pytest.mark.parametrize(
    ("settings", "keep"), [({}, lower_half_of_a_row), ({"pattern": "2:4"}, two_of_four)], ids=["row", "2:4"]
)
def test_each_output_loses_the_lowest_products_layer_by_layer(
    model: Any, tmp_path: Path, settings: dict[str, Any], keep: Any
) -> None:
    found = methods["wanda"](**settings).prune(model, context_of(tmp_path))
    expected = by_hand(model, keep)
    for name, weight in found.model.named_parameters():
        assert torch.equal(weight, expected.get_parameter(name).float()), name
    check_zero(found.model, found.masks, "pruned")


def test_pruned_predecessors_change_the_choice(model: Any, tmp_path: Path) -> None:
    """Norms of the dense model give other masks in later layers, and the same ones in the first."""
    found = methods["wanda"]().prune(model, context_of(tmp_path)).model
    linears = {name: m for name, m in model.named_modules() if name.endswith("up_proj")}
    inputs, alike = inputs_of(model, list(linears.values())), []
    for name, linear in linears.items():
        kept = lower_half_of_a_row(linear.weight.detach().abs() * inputs[linear].flatten(0, 1).norm(dim=0))
        alike.append(torch.equal(kept, found.get_submodule(name).weight != 0))
    assert alike[0]
    assert not any(alike[2:])


def test_with_unit_norms_it_is_magnitude_per_row(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_prune.pruning import sparsity

    class Ones:
        def __init__(self, linears: dict[str, nn.Module]) -> None:
            self.norms = {name: torch.ones(module.weight.shape[1]) for name, module in linears.items()}

        def __enter__(self) -> dict[str, torch.Tensor]:
            return self.norms

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(sparsity, "input_norms", Ones)
    ctx = context_of(tmp_path)
    ours = methods["wanda"](sparsity=0.6).prune(model, ctx)
    theirs = methods["magnitude"](sparsity=0.6, comparison="row").prune(model, ctx)
    assert all(torch.equal(ours.masks[name], theirs.masks[name]) for name in theirs.masks)


@pytest.mark.parametrize(("pattern", "sparsity"), [("4:8", 0.5), ("1:4", 0.75)])
def test_patterns_are_exact_in_every_group(model: Any, tmp_path: Path, pattern: str, sparsity: float) -> None:
    kept, group = map(int, pattern.split(":"))
    found = methods["wanda"](pattern=pattern, sparsity=sparsity).prune(model, context_of(tmp_path))
    assert found.achieved["sparsity"] == sparsity
    for mask in found.masks.values():
        assert (mask.view(len(mask), -1, group).sum(-1) == kept).all()


def test_the_dense_model_is_left_as_it_is(model: Any, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    methods["wanda"]().prune(model, context_of(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
