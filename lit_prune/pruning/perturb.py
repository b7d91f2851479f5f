"""Estimate the effect of units on the loss from models that lack random sets of them (Bonsai, arXiv 2402.05406)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_prune.config import Prune
from lit_prune.importance.criteria import CalibrationStats, criteria
from lit_prune.importance.ridge import ridge
from lit_prune.pruning.masked import masked, mean_loss
from lit_prune.pruning.units import UnitSpace

PRIOR = criteria["wanda_sp"]
"""The criterion that selects the units to perturb."""


def prior(
    model: Any, space: UnitSpace, kept: Tensor, collect: Callable[[Any, frozenset[str]], CalibrationStats]
) -> Tensor:
    """Return the scores [units] of `PRIOR` in the model with its kept units; a group has the mean of its heads."""
    with masked(model, space.plan_of(kept)):
        return space.vector(PRIOR.score(collect(model, frozenset(PRIOR.needs)), Prune()))


@dataclass(frozen=True)
class Perturbable:
    """The units of one kind, KV groups or neurons, that random models may lack."""

    units: Tensor
    """Their places in the vector of a `UnitSpace`: int64 [perturbable]."""
    weights: Tensor
    """Probability of each to be drawn, up to a factor: float64 [perturbable]."""

    def draw(self, pairs: int, generator: torch.Generator) -> Tensor:
        """Return bool [2 * pairs, perturbable], True for missing units: a random set, and in the next row all others.

        Fair coins decide how many are missing. With a fixed number, the sum of each row would be constant and leave the
        mean effect of the units undetermined, which a comparison between neurons and KV groups needs.
        """
        found = torch.zeros(2 * pairs, len(self.units), dtype=torch.bool)
        for row in range(0, 2 * pairs, 2):
            if count := int((torch.rand(len(self.units), generator=generator) < 0.5).sum()):
                found[row, torch.multinomial(self.weights, count, generator=generator)] = True
            found[row + 1] = ~found[row]
        return found


def perturbable(space: UnitSpace, kept: Tensor, scores: Tensor, share: float) -> list[Perturbable]:
    """Return the kept neurons and KV groups with the lowest scores: a share of those of the original model.

    `kept` and `scores` are [units]. Scores are compared between layers after division by their mean over the layer. The
    best unit of each layer is left out, so that no layer is emptied. Units are drawn in proportion to the difference
    between the highest score and their own.
    """
    scored, left, places = (space.split(values) for values in (scores, kept, torch.arange(space.size)))
    found = [_lowest(scored[1], left[1], places[1], share, None)]
    if space.groups:
        found.append(_lowest(scored[0], left[0], places[0], share, _only_full(space, kept)))
    return found


def _lowest(scores: Tensor, kept: Tensor, places: Tensor, share: float, spared: int | None) -> Perturbable:
    """Return the perturbable units of one kind, all [layers, units], but those of a spared layer."""
    ranked: list[tuple[float, int]] = []
    highest = 0.0
    for layer, mask in enumerate(kept):
        ours = scores[layer][mask]
        ours = ours / ours.mean().clamp_min(torch.finfo(torch.float32).tiny)
        highest, best = max(highest, float(ours.max())), int(ours.argmax())
        if layer != spared:
            scored = zip(ours.tolist(), places[layer][mask].tolist(), strict=True)
            ranked += [pair for i, pair in enumerate(scored) if i != best]
    ranked = sorted(ranked)[: max(2, math.ceil(share * scores.numel()))]
    weights = highest - torch.tensor([score for score, _ in ranked], dtype=torch.float64)
    units = torch.tensor([unit for _, unit in ranked], dtype=torch.int64)
    return Perturbable(units, weights.clamp_min(_LEAST))


_LEAST = 1e-6
"""Smallest weight of a unit, so that even a unit with the highest score can be drawn."""


def effects(
    model: Any, space: UnitSpace, kept: Tensor, found: Sequence[Perturbable], batch: dict[str, Tensor], pairs: int,
    generator: torch.Generator, on_progress: Callable[[int], None],
    measured: Callable[[Callable[[], float]], float] = lambda measure: measure(),
) -> Tensor:  # fmt: skip
    """Return the increase of the loss without a unit, float64 [perturbable]: one for each unit in all of `found`.

    The losses of `pairs` pairs of models, of which the second lacks what the first keeps of the perturbable units, are
    regressed on the missing units; the model that all of them perturb keeps the units of the mask `kept`. `measured`
    may know losses from an interrupted run.
    """

    def loss(row: Tensor) -> float:
        with masked(model, space.plan_of(kept.index_fill(0, units[row], False))):
            return mean_loss(model, [batch])

    units = torch.cat([one.units for one in found])
    missing = torch.cat([one.draw(pairs, generator) for one in found], dim=1)
    losses = []
    for row in missing:
        losses.append(measured(functools.partial(loss, row)))
        on_progress(len(losses))
    return ridge(missing, torch.tensor(losses, dtype=torch.float64))


def remove(space: UnitSpace, kept: Tensor, units: Tensor, effects: Tensor, limit: int) -> Tensor:
    """Return the kept units without those of the smallest effects per price, as many as bring the price to the limit.

    A KV group that costs more than remains to be removed goes only if the neurons do not suffice; units that fit again
    beside it are then put back, the last one first. A group stays if its layer is the only one with all groups and the
    family needs one such layer.
    """
    prices, groups = space.prices.tolist(), space.groups * space.whole.num_hidden_layers
    order = [unit for _, unit in sorted(zip((effects / space.prices[units]).tolist(), units.tolist(), strict=True))]
    left, cost, gone = kept.clone(), space.cost(kept), dict[int, None]()
    for overshoots in (False, True):
        for unit in order:
            excess, larger = cost - limit, unit < groups
            if excess <= 0:
                break
            if not left[unit] or (prices[unit] > excess and larger and not overshoots):
                continue
            if larger and unit // space.groups == _only_full(space, left):
                continue
            left[unit] = False
            gone[unit] = None
            cost -= int(prices[unit])
    for unit in reversed([*gone]):
        if cost + prices[unit] <= limit:
            left[unit] = True
            cost += int(prices[unit])
    return left


def without_least(
    model: Any, space: UnitSpace, kept: Tensor, scores: Tensor, limit: int, batch: dict[str, Tensor], pairs: int,
    share: float, generator: torch.Generator, on_progress: Callable[[int], None],
    measured: Callable[[Callable[[], float]], float],
) -> Tensor:  # fmt: skip
    """Return the kept units without the least effective ones down to a limit: a round of Bonsai.

    A `share` of the units, those of the lowest scores, is perturbed; see `effects` for the other arguments.
    """
    found = perturbable(space, kept, scores, share)
    slopes = effects(model, space, kept, found, batch, pairs, generator, on_progress, measured)
    return remove(space, kept, torch.cat([one.units for one in found]), slopes, limit)


def _only_full(space: UnitSpace, kept: Tensor) -> int | None:
    """Return the layer that must keep all its KV groups; None if there is none."""
    full = space.split(kept)[0].all(1).nonzero()[:, 0].tolist() if space.needs_full_layer else []
    return full[0] if len(full) == 1 else None
