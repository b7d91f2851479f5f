"""Magnitude pruning against values by hand and an independent sort."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_context import context_of, small_llama
from refusals import refuses

from lit_prune.methods import methods
from lit_prune.models.files import MASKS
from lit_prune.pruning.masks import save_masks

PROJECTIONS = "_proj.weight"


def zeroed(tmp_path: Path, **settings: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The matrices before and after."""
    model = small_llama()
    found = methods["magnitude"](**settings).prune(model, context_of(tmp_path)).model
    after = {name: weight for name, weight in found.named_parameters() if name.endswith(PROJECTIONS)}
    others = {name: weight for name, weight in found.named_parameters() if not name.endswith(PROJECTIONS)}
    before = dict(model.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in others.items())
    return {name: before[name].detach() for name in after}, {name: weight.detach() for name, weight in after.items()}


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_each_matrix_loses_its_smallest_weights(tmp_path: Path, sparsity: float) -> None:
    for before, after in zip(*(part.values() for part in zeroed(tmp_path, sparsity=sparsity)), strict=True):
        limit = before.abs().flatten().sort().values[round(sparsity * before.numel())]
        assert torch.equal(after, torch.where(before.abs() < limit, 0, before))


def test_each_row_loses_its_smallest_weights(tmp_path: Path) -> None:
    for before, after in zip(*(part.values() for part in zeroed(tmp_path, comparison="row")), strict=True):
        limits = before.abs().sort(dim=1).values[:, before.shape[1] // 2]
        assert torch.equal(after, torch.where(before.abs() < limits[:, None], 0, before))


def test_the_model_loses_its_smallest_weights(tmp_path: Path) -> None:
    before, after = zeroed(tmp_path, comparison="model", sparsity=0.25)
    together = torch.cat([weight.flatten() for weight in before.values()])
    limit = together.abs().sort().values[round(0.25 * together.numel())]
    for name, weight in before.items():
        assert torch.equal(after[name], torch.where(weight.abs() < limit, 0, weight))


def test_a_pattern_leaves_two_of_four(tmp_path: Path) -> None:
    for before, after in zip(*(part.values() for part in zeroed(tmp_path, pattern="2:4")), strict=True):
        groups = before.abs().view(len(before), -1, 4)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2).indices, True)
        assert torch.equal(after, torch.where(kept.view(before.shape), before, 0))


def test_masks_of_another_run_are_applied_instead(tmp_path: Path) -> None:
    model, ctx = small_llama(), context_of(tmp_path)
    first = methods["magnitude"](sparsity=0.6).prune(model, ctx)
    save_masks(first.masks, tmp_path)
    again = methods["magnitude"](plan_path=str(tmp_path / MASKS))
    second = again.prune(model, ctx)
    assert second.achieved == first.achieved
    assert all(map(torch.equal, second.model.parameters(), first.model.parameters()))
    assert again.effective(model.config) == methods["magnitude"](plan_path=str(tmp_path / MASKS))
    with refuses("prune.plan_path", "model.layers"):
        again.check(small_llama(intermediate_size=44).config)
    with refuses("prune.init", "random"):
        methods["magnitude"](init="random").check(model.config)
