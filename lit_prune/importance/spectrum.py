"""The tail of the spectrum of a weight matrix: exponent of a power law, by the Hill estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_prune.models.linears import linears_of, rows_of
from lit_prune.models.model_family import layers_of

_BINS = 100
"""Bins of the histogram of log eigenvalues."""
_NEAR = (0.95, 1.5)
"""Range of tail beginnings that are tried, relative to the peak of the histogram."""


def eigenvalues(weight: Tensor) -> Tensor:
    """Return the eigenvalues of W^T W that may differ from zero, ascending: [out, in] -> float64 [min(out, in)]."""
    weight = weight.detach().double()
    gram = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
    return torch.linalg.eigvalsh(gram).clamp_min(torch.finfo(torch.float64).tiny)


def hill_exponent(tail: Tensor) -> float:
    """Return the exponent 1 + n / sum_i ln(x_i / x_min) of the power law p(x) ~ x^-exponent of n values.

    The maximum-likelihood estimate of the tail of a Pareto distribution that begins at the smallest value.
    """
    return 1 + len(tail) / float((tail / tail.min()).log().sum())


def layer_exponents(
    model: Any, start: Literal["peak", "median"], on_progress: Callable[[int], None] = lambda done: None
) -> list[float]:
    """Return the mean `tail_exponent` of the linears of each layer. Higher means a lighter tail: less well trained.

    Linears whose eigenvalues are all equal, such as zeros, have no tail and are left out. A layer of such linears alone
    is taken to be as badly trained as the worst other layer.
    """
    means: list[float | None] = []
    for index in range(len(layers_of(model))):
        spectra = (eigenvalues(rows_of(module)) for _, module in linears_of(model, index))
        found = [tail_exponent(values, start) for values in spectra if values[0] < values[-1]]
        means.append(sum(found) / len(found) if found else None)
        on_progress(len(means))
    worst = max((mean for mean in means if mean is not None), default=1.0)
    return [worst if mean is None else mean for mean in means]


def tail_exponent(values: Tensor, start: Literal["peak", "median"] = "peak") -> float:
    """Return the Hill estimate for the upper tail of ascending positive values.

    With `peak` the tail begins at the value for which the power law is closest to the data by the Kolmogorov-Smirnov
    distance, among those from 0.95 to 1.5 times the peak of the histogram of their logarithms. With `median` it begins
    there. It always contains two different values.
    """
    middle = min(len(values) // 2, int((values < values[-1]).sum()) - 1)
    if start == "median":
        return hill_exponent(values[middle:])
    logs = values.log10()
    counts = torch.histc(logs.float(), _BINS)
    peak = 10 ** (logs[0] + int(counts.argmax()) * (logs[-1] - logs[0]) / _BINS)
    near = (values[:-1] >= _NEAR[0] * peak) & (values[:-1] <= _NEAR[1] * peak) & (values[:-1] < values[-1])
    found = [(_distance(values[i:]), i) for i in near.nonzero().flatten().tolist()]
    begin = min(found)[1] if found else middle
    return hill_exponent(values[begin:])


def _distance(tail: Tensor) -> float:
    """Return the largest distance between the distribution of ascending values and that of their power law."""
    law = 1 - (tail / tail[0]) ** (1 - hill_exponent(tail))
    empirical = torch.arange(len(tail), dtype=tail.dtype, device=tail.device) / len(tail)
    return float((law - empirical).abs().max())
