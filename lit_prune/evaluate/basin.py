"""Measure how far weights can move before the loss rises: the volume of the basin around them (arXiv 1906.03291).

V = omega_n E[r(phi)^n], with omega_n the volume of the unit ball in n dimensions and r(phi) the distance in a random
direction at which the loss is higher by epsilon. All of it is computed in logarithms.

The estimate is biased low in many dimensions, where few directions miss the widest ones that dominate E[r^n]; for an
anisotropic quadratic in 256 dimensions it is off by tens of nats with 20,000 directions. Compare only models with as
many weights and as many directions, and read the mean log radius beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from scipy import optimize
from torch import Tensor, nn

from lit_prune.config import BasinTest
from lit_prune.evaluate.perplexity import sequence_losses
from lit_prune.models.linears import linears_of, oriented
from lit_prune.pruning.masks import Masks

LARGEST = 2.0**20
"""Radius beyond which a direction is not followed."""
_FAR = 10.0
"""Rise, in multiples of epsilon, above which losses count as equal, as infinite ones do."""


def log_volume(radii: Tensor, num_weights: int) -> float:
    """Return log(omega_n E[r^n]) for float64 `radii` [directions] of n weights."""
    ball = num_weights / 2 * math.log(math.pi) - math.lgamma(num_weights / 2 + 1)
    return ball + float(torch.logsumexp(num_weights * radii.log(), 0)) - math.log(len(radii))


def radius(rise: Callable[[float], float], epsilon: float, tolerance: float) -> float:
    """Return the distance at which a loss has risen by `epsilon`, up to a relative `tolerance`.

    `rise` maps a distance to the loss there minus the loss at 0. The logarithm of the distance is bracketed by halving
    and doubling from 0.1; scipy then finds the root. That is the first crossing if the loss does not fall below the
    threshold again between two distances of the bracketing.

    Raises:
        RuntimeError: if the loss does not rise so far within the largest distance, or has at the smallest one.
    """

    @functools.cache
    def excess(log: float) -> float:
        found = rise(math.exp(log)) - epsilon
        return min(found, _FAR * epsilon) if math.isfinite(found) else _FAR * epsilon

    low = high = math.log(0.1)
    while excess(low) > 0:
        low, high = low - math.log(2), low
        if low < -math.log(LARGEST):
            raise RuntimeError(f"basin: the loss has risen by {epsilon} at a distance of {math.exp(low):g}")
    while low == high or excess(high) <= 0:
        low, high = high, high + math.log(2)
        if high > math.log(LARGEST):
            raise RuntimeError(f"basin: the loss has not risen by {epsilon} at a distance of {math.exp(low):g}")
    return math.exp(optimize.brentq(excess, low, high, xtol=tolerance / 2))


class Moved(NamedTuple):
    """A matrix that moves, its filters in the last dimension: a filter holds the weights of one output."""

    weight: nn.Parameter
    start: Tensor
    """Its values before it moves."""
    kept: Tensor
    """bool, False for weights that do not move."""
    turned: Callable[[Tensor], Tensor]
    """Turns a tensor of the shape of the weight so that filters are in the last dimension, or back."""


def moved_weights(model: Any, masks: Masks) -> list[Moved]:
    """Return the weights that directions move: those of all matrices that are not pruned.

    As in filter normalisation, vectors (norms, biases) do not move. A filter of zeros has no norm and does not move.
    """
    linears, found = dict(linears_of(model)), []
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            turned = functools.partial(oriented, linears.get(name))
            start = turned(weight.detach()).clone()
            kept = (start.norm(dim=-1, keepdim=True) > 0).expand_as(start)
            if name in masks:
                kept = kept & turned(masks[name].to(weight.device))
            found.append(Moved(weight, start, kept, turned))
    return found


def random_direction(moved: Sequence[Moved], generator: torch.Generator) -> list[Tensor]:
    """Return a direction in which every filter has the norm of the weights' filter (arXiv 1712.09913, section 4).

    Filters are in the last dimension. Numbers are drawn on the CPU.
    """
    found = []
    for one in moved:
        drawn = one.turned(torch.randn(one.weight.shape, generator=generator)).to(one.start) * one.kept
        norms = drawn.norm(dim=-1, keepdim=True)
        found.append(drawn * torch.where(norms > 0, one.start.norm(dim=-1, keepdim=True) / norms, 0))
    return found


@torch.no_grad()
def measure_basin(
    model: Any, masks: Masks, batches: Iterable[dict[str, Tensor]], test: BasinTest,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:  # fmt: skip
    """Return the log volume of a model's basin, the mean log radius, and the number of weights that move.

    `batches` hold {`input_ids`, `labels`: int64 [batch, seq]}. A radius of 1 moves every filter by its own norm. The
    weights are the same afterwards.

    Raises:
        RuntimeError: as `radius`.
    """
    batches, moved = list(batches), moved_weights(model, masks)
    lowest = sequence_losses(model, batches).mean
    generator = torch.Generator().manual_seed(test.seed)

    def rise(direction: Sequence[Tensor], distance: float) -> float:
        for one, step in zip(moved, direction, strict=True):
            one.weight.copy_(one.turned(one.start + distance * step))
        return sequence_losses(model, batches).mean - lowest

    radii = torch.empty(test.num_directions, dtype=torch.float64)
    try:
        for i in range(test.num_directions):
            along = functools.partial(rise, random_direction(moved, generator))
            radii[i] = radius(along, test.epsilon, test.tolerance)
            on_progress(i + 1)
    finally:
        for one in moved:
            one.weight.copy_(one.turned(one.start))
    num_weights = sum(int(one.kept.sum()) for one in moved)
    return {
        "basin_log_volume": log_volume(radii, num_weights), "basin_mean_log_radius": radii.log().mean().item(),
        "basin_num_weights": num_weights,
    }  # fmt: skip
