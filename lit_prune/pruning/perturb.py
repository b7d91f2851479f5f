"""Estimate the effect of units on the loss from models that lack random sets of them (Bonsai, arXiv 2402.05406)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_prune.config import Prune
from lit_prune.importance.criteria import CalibrationStats, Scores, criteria
from lit_prune.importance.ridge import ridge
from lit_prune.models.shape import shape_of
from lit_prune.pruning.masked import masked, mean_loss
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts

PRIOR = criteria["wanda_sp"]
"""The criterion that selects the units to perturb."""


class Unit(NamedTuple):
    """A neuron or a KV group with its query heads, by its numbers in the original model."""

    axis: str
    """"neuron" or "kv_group"."""
    layer: int
    number: int


@dataclass(frozen=True)
class Perturbable:
    """The units of one axis that random models may lack."""

    units: list[Unit]
    weights: Tensor
    """Probability of each to be drawn, up to a factor: float64 [units]."""

    def draw(self, pairs: int, generator: torch.Generator) -> Tensor:
        """Return bool [2 * pairs, units], True for missing units: a random set, and in the next row all others.

        Fair coins decide how many are missing. With a fixed number, the sum of each row would be constant and leave the
        mean effect of the units undetermined, which a comparison between neurons and KV groups needs.
        """
        found = torch.zeros(2 * pairs, len(self.units), dtype=torch.bool)
        for row in range(0, 2 * pairs, 2):
            if count := int((torch.rand(len(self.units), generator=generator) < 0.5).sum()):
                found[row, torch.multinomial(self.weights, count, generator=generator)] = True
            found[row + 1] = ~found[row]
        return found


def prior(stats: CalibrationStats) -> Scores:
    """Return the scores of `PRIOR` for neurons and for KV groups: the mean over the heads of a group."""
    scores, groups = PRIOR.score(stats, Prune()), shape_of(stats.model.config).num_key_value_heads
    return {"neuron": scores["neuron"], "kv_group": [heads.view(groups, -1).mean(1) for heads in scores["head"]]}


def perturbable(plan: PrunePlan, scores: Scores, share: float, costs: UnitCosts) -> list[Perturbable]:
    """Return the units of each axis with the lowest scores: a share of those of the original model.

    Scores are compared between layers after division by their mean over the layer. The best unit of each layer is left
    out, so that no layer is emptied. Units are drawn in proportion to the difference between the highest score and
    their own.
    """
    found = []
    for axis in ("neuron", "kv_group") if costs.prunes_groups else ("neuron",):
        ranked: list[tuple[float, Unit]] = []
        highest = 0.0
        for layer in plan.layers:
            kept = layer.neurons if axis == "neuron" else plan.groups_of(layer)
            ours = scores[axis][layer.index][list(kept)]
            ours = ours / ours.mean().clamp_min(torch.finfo(torch.float32).tiny)
            highest, best = max(highest, float(ours.max())), int(ours.argmax())
            if axis == "neuron" or not _only_full(plan, layer, costs):
                values = ours.tolist()
                ranked += [(values[i], Unit(axis, layer.index, unit)) for i, unit in enumerate(kept) if i != best]
        whole = costs.whole.units(axis) * costs.whole.num_hidden_layers
        ranked = sorted(ranked)[: max(2, math.ceil(share * whole))]
        weights = highest - torch.tensor([score for score, _ in ranked], dtype=torch.float64)
        found.append(Perturbable([unit for _, unit in ranked], weights.clamp_min(_LEAST)))
    return found


_LEAST = 1e-6
"""Smallest weight of a unit, so that even a unit with the highest score can be drawn."""


def effects(
    model: Any, plan: PrunePlan, found: Sequence[Perturbable], batches: Sequence[dict[str, Tensor]], pairs: int,
    generator: torch.Generator, on_progress: Callable[[int], None],
    measured: Callable[[Callable[[], float]], float] = lambda measure: measure(),
) -> list[tuple[float, Unit]]:  # fmt: skip
    """Return the increase of the loss without a unit, for each unit.

    The losses of `pairs` pairs of models, of which the second lacks what the first keeps of the perturbable units, are
    regressed on the missing units; the model that all of them perturb is the one that `plan` leaves. `measured` may
    know losses from an interrupted run.
    """

    def loss(row: Tensor) -> float:
        with masked(model, without(plan, (unit for unit, gone in zip(units, row.tolist(), strict=True) if gone))):
            return mean_loss(model, batches)

    units = [unit for one in found for unit in one.units]
    missing = torch.cat([one.draw(pairs, generator) for one in found], dim=1)
    losses = []
    for row in missing:
        losses.append(measured(functools.partial(loss, row)))
        on_progress(len(losses))
    slopes = ridge(missing, torch.tensor(losses, dtype=torch.float64))
    return list(zip(slopes.tolist(), units, strict=True))


def remove(plan: PrunePlan, effects: Iterable[tuple[float, Unit]], costs: UnitCosts, limit: int) -> PrunePlan:
    """Return the plan without the units of the smallest effects per cost, as many as bring its cost to the limit.

    A KV group that costs more than remains to be removed goes only if the neurons do not suffice; units that fit again
    beside it are then put back, the last one first. A group stays if its layer is the only one with all groups and the
    family needs one such layer.
    """
    price = {"neuron": costs.neuron, "kv_group": costs.group}
    order = [unit for _, unit in sorted((effect / price[unit.axis], unit) for effect, unit in effects)]
    full = {layer.index for layer in plan.layers if _is_full(plan, layer)}
    cost, gone = costs.of(plan), dict[Unit, None]()
    for overshoots in (False, True):
        for unit in order:
            excess, larger = cost - limit, unit.axis == "kv_group"
            if excess <= 0:
                break
            if unit in gone or (price[unit.axis] > excess and larger and not overshoots):
                continue
            if larger and costs.needs_full_layer and full == {unit.layer}:
                continue
            if larger:
                full.discard(unit.layer)
            gone[unit] = None
            cost -= price[unit.axis]
    for unit in reversed([*gone]):
        if cost + price[unit.axis] <= limit:
            del gone[unit]
            cost += price[unit.axis]
    return without(plan, gone)


def without(plan: PrunePlan, units: Iterable[Unit]) -> PrunePlan:
    """Return the plan without these units."""
    gone: dict[tuple[str, int], set[int]] = {}
    for unit in units:
        gone.setdefault((unit.axis, unit.layer), set()).add(unit.number)
    return replace(plan, layers=tuple(_thinned(plan, layer, gone) for layer in plan.layers))


def _thinned(plan: PrunePlan, layer: LayerPlan, gone: dict[tuple[str, int], set[int]]) -> LayerPlan:
    size = plan.original.num_attention_heads // plan.original.num_key_value_heads
    neurons, groups = (gone.get((axis, layer.index), set()) for axis in ("neuron", "kv_group"))
    return replace(
        layer,
        neurons=tuple(i for i in layer.neurons if i not in neurons),
        heads=tuple(head for head in layer.heads if head // size not in groups),
    )


def _is_full(plan: PrunePlan, layer: LayerPlan) -> bool:
    return len(layer.heads) == plan.original.num_attention_heads


def _only_full(plan: PrunePlan, layer: LayerPlan, costs: UnitCosts) -> bool:
    """Return whether a layer must keep all its KV groups."""
    full = [one for one in plan.layers if _is_full(plan, one)]
    return costs.needs_full_layer and full == [layer]
