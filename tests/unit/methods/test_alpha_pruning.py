"""AlphaPruning: sparsity of each layer by its spectra, exact over the model, with either score inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning_context import LAYERS, context_of, small_llama

from lit_prune.methods import methods

HEAVY = 3
"""The layer whose spectra get a heavy tail."""


@pytest.fixture(scope="module")
def model() -> Any:
    model = small_llama()
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if f".{HEAVY}." in name and name.endswith("_proj.weight"):
            u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
            tail = (1 - torch.rand(len(s), generator=draw)).pow(-1.0).sort(descending=True).values
            weight.data = (u * tail) @ v
    return model


def exponent(weight: torch.Tensor) -> float:
    """Hill estimate above the median eigenvalue, in NumPy."""
    values = np.sort(np.linalg.svd(weight.detach().double().numpy(), compute_uv=False) ** 2)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.mark.parametrize(("criterion", "epsilon"), [("wanda", 0.3), ("magnitude", 0.5)])
def test_sparsities_follow_the_exponents_of_the_layers(
    model: Any, tmp_path: Path, criterion: str, epsilon: float
) -> None:
    found = methods["alpha_pruning"](criterion=criterion, tail="median").prune(model, context_of(tmp_path))
    weights = [[p for p in layer.parameters() if p.ndim == 2] for layer in model.model.layers]
    values = np.array([np.mean([exponent(weight) for weight in layer]) for layer in weights])
    shares = 1 - epsilon + 2 * epsilon * (values - values.min()) / (values.max() - values.min())
    expected = 0.7 * shares / shares.mean()
    assert expected.argmin() == HEAVY
    assert found.achieved["sparsity"] == pytest.approx(0.7, abs=1e-4)
    for index in range(LAYERS):
        masks = [mask for name, mask in found.masks.items() if f".{index}." in name]
        zeros = sum(int((~mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        assert zeros == pytest.approx(expected[index], abs=1e-3)


def test_inside_a_matrix_the_criterion_decides(model: Any, tmp_path: Path) -> None:
    ctx = context_of(tmp_path)
    by_magnitude = methods["alpha_pruning"](criterion="magnitude", sparsity=0.5).prune(model, ctx)
    for name, mask in by_magnitude.masks.items():
        size = model.get_parameter(name).detach().abs()
        assert size[~mask].max() <= size[mask].min()
    by_wanda = methods["alpha_pruning"]().prune(model, ctx)
    for mask in by_wanda.masks.values():
        assert mask.sum(1).max() - mask.sum(1).min() <= 1


def test_an_epsilon_of_zero_is_uniform(model: Any, tmp_path: Path) -> None:
    ctx = context_of(tmp_path)
    ours = methods["alpha_pruning"](epsilon=0.0, sparsity=0.5).prune(model, ctx)
    theirs = methods["wanda"](sparsity=0.5).prune(model, ctx)
    assert all(torch.equal(ours.masks[name], theirs.masks[name]) for name in theirs.masks)
