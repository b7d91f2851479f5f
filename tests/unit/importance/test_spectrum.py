"""Hill estimator of spectra: samples of a Pareto distribution, values by hand, eigenvalues against an SVD."""

from __future__ import annotations

import math

import pytest
import torch
from pruning_context import small_llama

from lit_prune.importance.spectrum import eigenvalues, hill_exponent, layer_exponents, tail_exponent
from lit_prune.models.linears import linears_of


def pareto(exponent: float, count: int) -> torch.Tensor:
    """Ascending samples with the density ~ x^-exponent above 1."""
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (1 - uniform).pow(-1 / (exponent - 1)).sort().values


@pytest.mark.parametrize("exponent", [1.5, 2.5, 4.0])
def test_the_exponent_of_a_pareto_distribution_is_found(exponent: float) -> None:
    assert hill_exponent(pareto(exponent, 100_000)) == pytest.approx(exponent, rel=0.01)
    for start in ("peak", "median"):  # every tail of a Pareto distribution is one, with the same exponent
        assert tail_exponent(pareto(exponent, 2000), start) == pytest.approx(exponent, rel=0.1)


def test_values_by_hand() -> None:
    assert hill_exponent(torch.tensor([1.0, math.e, math.e**3], dtype=torch.float64)) == pytest.approx(1 + 3 / 4)
    values = torch.tensor([1e-9, 1e-6, 1.0, math.e], dtype=torch.float64)
    assert tail_exponent(values, "median") == pytest.approx(1 + 2 / 1)


def test_the_tail_begins_near_the_peak_of_the_spectrum() -> None:
    """Small values below the tail, which would make it look heavier, are left out."""
    tail = pareto(3.0, 1500)
    noise = torch.linspace(1e-4, 0.5, 100, dtype=torch.float64)
    both = torch.cat([noise, tail]).sort().values
    assert tail_exponent(both) == pytest.approx(3.0, rel=0.1)
    assert hill_exponent(both) < 2


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_eigenvalues_are_squared_singular_values(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(weight.double()).square().sort().values
    torch.testing.assert_close(eigenvalues(weight), expected)


def test_a_layer_has_the_mean_of_its_matrices() -> None:
    model, seen = small_llama(), list[int]()
    found = layer_exponents(model, "median", seen.append)
    assert seen == list(range(1, 9))
    of_layer = [tail_exponent(eigenvalues(module.weight), "median") for _, module in linears_of(model, 3)]
    assert found[3] == pytest.approx(sum(of_layer) / 7)


def test_linears_without_a_tail_are_left_out() -> None:
    model = small_llama()
    whole = layer_exponents(model, "median")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.zero_()
        for _, module in linears_of(model, 5):
            module.weight.zero_()
    found = layer_exponents(model, "median")
    left = [tail_exponent(eigenvalues(module.weight), "median") for _, module in linears_of(model, 2)
            if module.weight.any()]  # fmt: skip
    assert found[2] == pytest.approx(sum(left) / 6)
    assert found[5] == max(*found[:5], *found[6:])
    assert [found[i] for i in (0, 1, 3, 4, 6, 7)] == [whole[i] for i in (0, 1, 3, 4, 6, 7)]
    one_outlier = torch.tensor([1.0, 1.0, 1.0, math.e], dtype=torch.float64)  # as of a matrix of rank 1
    assert tail_exponent(one_outlier, "median") == pytest.approx(1 + 2 / 1)
    assert math.isfinite(tail_exponent(one_outlier))
