"""KV groups and MLP neurons of all layers as one vector, with their prices and a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_prune.config import Size
from lit_prune.importance.criteria import Scores
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import ModelShape
from lit_prune.pruning.gating import LayerGates
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts


@dataclass(frozen=True)
class UnitSpace:
    """The prunable units of a model: a vector holds one value per KV group of each layer, then one per neuron.

    Each layer keeps at least one group and one neuron. In families whose heads are as wide as the residual stream, KV
    groups cannot be pruned alone: all of them are kept, and only neurons are units.
    """

    whole: ModelShape
    groups: int
    """Prunable KV groups in each layer, 0 if the family forbids it."""
    group_price: int
    """Parameters, or bytes, of a KV group with its query heads."""
    neuron_price: int
    """Those of a neuron."""
    fixed: int
    """Those of everything else."""
    budget: int
    """Those to keep at most."""
    group_counts: tuple[int, ...]
    """Numbers of KV groups that the layer with the most of them may keep, ascending."""
    needs_full_layer: bool
    """Whether the family allows any plan in which one layer keeps all its KV groups, and other plans only by the number
    that its widest layer keeps."""

    @staticmethod
    def of(config: Any, num_parameters: Size) -> UnitSpace:
        """Return the units of a model with this config, and a budget that is a count or a share of its parameters.

        Raises:
            ConfigError: if the budget is larger than the model, or too small for one unit of each kind per layer.
        """
        costs = UnitCosts.parameters(config)
        least = costs.of(costs.smallest())
        return UnitSpace.within(config, costs, costs.limit(num_parameters, "prune.num_parameters", least))

    @staticmethod
    def within(config: Any, costs: UnitCosts, limit: int) -> UnitSpace:
        """Return the units of a model with this config, whose costs, parameters or bytes, have a limit."""
        whole = costs.whole
        groups = whole.num_key_value_heads if costs.prunes_groups else 0
        units = whole.intermediate_size * costs.neuron + groups * costs.group
        any_count, size = not anatomy_of(config).whole_heads, whole.heads_per_group
        counts = tuple(n for n in range(1, groups + 1) if any_count or whole.hidden_size % (n * size) == 0)
        fixed = costs.total - whole.num_hidden_layers * units
        return UnitSpace(whole, groups, costs.group, costs.neuron, fixed, limit, counts, costs.needs_full_layer)

    @property
    def size(self) -> int:
        """Number of units."""
        return self.whole.num_hidden_layers * (self.groups + self.whole.intermediate_size)

    @property
    def prices(self) -> Tensor:
        """Price of each unit, float64 [units]."""
        groups = self.whole.num_hidden_layers * self.groups
        kinds = torch.tensor([self.group_price, self.neuron_price], dtype=torch.float64)
        return kinds.repeat_interleave(torch.tensor([groups, self.size - groups]))

    def cost(self, kept: Tensor) -> int:
        """Return the price of a model that keeps the units of a mask, bool [units]."""
        return self.fixed + int(self.prices[kept].sum())

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the groups [layers, groups] and of the neurons [layers, neurons] of a vector."""
        layers = self.whole.num_hidden_layers
        groups, neurons = values.split([layers * self.groups, layers * self.whole.intermediate_size])
        return groups.view(layers, -1 if self.groups else 0), neurons.view(layers, -1)

    def vector(self, scores: Scores) -> Tensor:
        """Return scores of axes "neuron" and "head" as a vector [units]; a group has the mean score of its heads."""
        heads = torch.stack([*scores["head"]]).unflatten(1, (self.whole.num_key_value_heads, -1)).mean(2)
        return torch.cat([heads[:, : self.groups].flatten(), torch.stack([*scores["neuron"]]).flatten()])

    def gates(self, values: Tensor) -> list[LayerGates]:
        """Return the factors [units] of a vector by layer, as `lit_prune.pruning.gating.gated` takes them."""
        groups, neurons = self.split(values)
        return [LayerGates(row, groups[i] if self.groups else None) for i, row in enumerate(neurons)]

    def project(self, values: Tensor) -> Tensor:
        """Return clamp(values - v, 0, 1) with the smallest v >= 0 whose price is within the budget, by bisection."""
        prices, room = self.prices.to(values.device), self.budget - self.fixed
        low, high = 0.0, max(float(values.max()), 0.0)

        def at(shift: float) -> Tensor:
            return (values.double() - shift).clamp(0, 1)

        if float(at(0.0) @ prices) > room:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if float(at(middle) @ prices) > room else (low, middle)
            return at(high).to(values.dtype)
        return at(0.0).to(values.dtype)

    def start(self, scores: Scores) -> Tensor:
        """Return probabilities [units] within the budget, from scores of axes "neuron" and "head".

        They are the sigmoid of scores standardised in each layer, shifted to the mean of the share to keep.
        """
        share = (self.budget - self.fixed) / float(self.prices.sum())
        parts = self.split(self.vector(scores))
        return self.project(torch.cat([_raised(part, share).flatten() for part in parts]).clamp(0, 1))

    def plan(self, scores: Tensor) -> PrunePlan:
        """Return the plan that keeps the units of the highest scores that the budget pays for, over all layers.

        Where the config requires the heads of the widest layer to divide the hidden size, each allowed number of KV
        groups is tried as the largest one, and the plan with the highest mean score of its parameters is returned.
        """
        return self.plan_of(self.chosen(scores))

    def chosen(self, scores: Tensor) -> Tensor:
        """Return the units that `plan` keeps, bool [units]."""
        scores = scores.detach().double().cpu()
        worth = scores * self.prices  # what a choice in the order of the scores maximises
        return max(self._choices(scores), key=lambda kept: float(worth[kept].sum()))

    def plan_of(self, kept: Tensor) -> PrunePlan:
        """Return the plan that keeps the units of a mask, bool [units]."""
        groups, neurons = self.split(kept)
        every = torch.ones(self.whole.num_key_value_heads, dtype=torch.bool)
        layers = []
        for i, mask in enumerate(neurons):
            heads = (groups[i] if self.groups else every).repeat_interleave(self.whole.heads_per_group)
            layers.append(LayerPlan(i, tuple(mask.nonzero()[:, 0].tolist()), tuple(heads.nonzero()[:, 0].tolist())))
        return PrunePlan(self.whole, tuple(range(self.whole.hidden_size)), tuple(layers))

    def _choices(self, scores: Tensor) -> Iterator[Tensor]:
        """Yield the kept units bool [units] for each number of KV groups that the widest layer may keep."""
        groups, neurons = self.split(scores)
        for most in sorted(self.group_counts, reverse=True) or [0]:
            kept, barred = (torch.zeros(self.size, dtype=torch.bool) for _ in range(2))
            of_groups, of_neurons = self.split(kept)
            of_neurons[range(len(neurons)), neurons.argmax(1)] = True
            if self.groups:
                order = groups.argsort(dim=1, descending=True, stable=True)
                rows = torch.arange(len(groups))
                of_groups[rows, order[:, 0]] = True
                if self.group_counts != tuple(range(1, self.groups + 1)):
                    best = groups.gather(1, order[:, :most])
                    widest = int(best.sum(1).argmax())
                    of_groups[widest, order[widest, :most]] = True
                    self.split(barred)[0].scatter_(1, order[:, most:], True)
            room = self.budget - self.fixed - float(self.prices[kept].sum())
            if room >= 0:
                yield self._bought(kept, barred, scores, room)

    def _bought(self, kept: Tensor, barred: Tensor, scores: Tensor, room: float) -> Tensor:
        """Return the kept units after the others are bought in the order of their scores."""
        prices, taken = self.prices.tolist(), kept.tolist()
        never = barred.tolist()
        for unit in scores.argsort(descending=True, stable=True).tolist():
            if not taken[unit] and not never[unit] and prices[unit] <= room:
                taken[unit] = True
                room -= prices[unit]
        return torch.tensor(taken)


def _raised(scores: Tensor, share: float) -> Tensor:
    centred = scores - scores.mean(1, keepdim=True)
    raised = (centred / (scores.std(1, correction=0, keepdim=True) + 1e-8)).sigmoid()
    return raised + share - raised.mean(1, keepdim=True)
