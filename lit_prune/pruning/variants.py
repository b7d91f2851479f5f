"""The variants of attention and MLP between which a search chooses in every layer, and the best choice in a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lit_prune.importance.criteria import Scores
from lit_prune.models.shape import ModelShape
from lit_prune.pruning.allocate import uniform
from lit_prune.pruning.knapsack import Option, knapsack, least_cost
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts

Size = tuple[int, int]
"""Neurons and KV groups of a variant of a layer: 0 neurons are no MLP, 0 groups no attention, (0, 0) is no layer."""


class Prices(Protocol):
    """Costs of variants, whose sum has a limit: parameters, bytes (`UnitCosts`) or nanoseconds (`Latencies`)."""

    @property
    def outside(self) -> int:
        """Cost of all that lies outside the layers."""

    @property
    def besides(self) -> int:
        """Cost of what a layer has besides attention and MLP."""

    @property
    def neuron(self) -> int:
        """Cost of one neuron more; 0 if only the widths of the library have a known cost."""

    @property
    def group(self) -> int:
        """Cost of one KV group more, likewise."""

    def attention(self, groups: int) -> int:
        """Return the cost of the attention of a layer with so many KV groups; 0 without any."""

    def mlp(self, neurons: int) -> int:
        """Return the cost of the MLP of a layer with so many neurons; 0 without any."""


@dataclass(frozen=True)
class Library:
    """The variants of every layer: each combination of an MLP and an attention, and no layer at all."""

    whole: ModelShape
    prices: Prices
    neurons: Sequence[int]
    """Neurons of the MLPs, descending; the first is the whole MLP, and the last may be 0."""
    groups: Sequence[int]
    """KV groups of the attentions, likewise."""
    drops: bool
    """Whether layers may be dropped."""
    needs_full_layer: bool
    """As in `UnitCosts`."""

    @staticmethod
    def of(
        costs: UnitCosts, widths: Iterable[float], groups: Iterable[float], drops: bool, drops_sublayers: bool = False
    ) -> Library:
        """Return the library with these shares of neurons and of KV groups beside the whole.

        With `drops_sublayers`, layers may also lack the MLP or attention.
        """
        whole, none = costs.whole, (0,) if drops_sublayers else ()
        neurons = _numbers(widths, whole.intermediate_size)
        kept = _numbers(groups if costs.prunes_groups else (), whole.num_key_value_heads)
        return Library(whole, costs, neurons + none, kept + none, drops, costs.needs_full_layer)

    def sizes(self) -> list[Size]:
        """Return the variants of a layer, the whole one first."""
        found = [(n, g) for g in self.groups for n in self.neurons if n or g]
        return found + ([(0, 0)] if self.drops else [])

    def parts(self) -> list[Size]:
        """Return the variants to score: one sub-layer replaced or the layer dropped; others are sums of these."""
        n, g = self.neurons[0], self.groups[0]
        return (
            [(other, g) for other in self.neurons[1:]]
            + [(n, other) for other in self.groups[1:]]
            + ([(0, 0)] if self.drops else [])
        )

    def cost(self, size: Size) -> int:
        """Return the cost of a layer of this size."""
        neurons, groups = size
        return self.prices.besides + self.prices.mlp(neurons) + self.prices.attention(groups) if any(size) else 0

    def of_model(self, sizes: Iterable[Size]) -> int:
        """Return the cost of a model whose layers have these sizes."""
        return self.prices.outside + sum(map(self.cost, sizes))

    def sufficient(self, size: Size) -> bool:
        """Return whether one layer of this size is enough: with MLP and attention, and all KV groups if one must."""
        neurons, groups = size
        return neurons > 0 and (groups == self.groups[0] if self.needs_full_layer else groups > 0)

    def least(self) -> int:
        """Return the cost of the cheapest model."""
        group = [Option(0.0, self.cost(size), self.sufficient(size)) for size in self.sizes()]
        return self.prices.outside + least_cost([group] * self.whole.num_hidden_layers)

    def layer(self, scores: Scores, index: int, size: Size, config: Any) -> tuple[LayerPlan, ...]:
        """Return the plan of a layer of this size, with the units of the highest scores; () if it is dropped."""
        neurons, groups = size
        if not any(size):
            return ()
        per_group, some = self.whole.heads_per_group, max(1, groups)
        target = replace(
            self.whole,
            intermediate_size=max(1, neurons),
            num_attention_heads=per_group * some,
            num_key_value_heads=some,
        )
        (found,) = uniform(scores, (index,), target, config)
        return (replace(found, neurons=found.neurons if neurons else (), heads=found.heads if groups else ()),)

    def plan(self, scores: Scores, sizes: Iterable[Size], config: Any) -> PrunePlan:
        """Return the plan whose layers have these sizes."""
        layers = (one for i, size in enumerate(sizes) for one in self.layer(scores, i, size, config))
        return replace(PrunePlan.everything(self.whole), layers=tuple(layers))

    def replacements(self, scores: Scores, config: Any) -> Iterator[tuple[int, PrunePlan]]:
        """Yield each layer with each variant of `parts` in it, as the plan of a model whose other layers are whole."""
        whole = (self.neurons[0], self.groups[0])
        for index in range(self.whole.num_hidden_layers):
            for size in self.parts():
                sizes = [size if i == index else whole for i in range(self.whole.num_hidden_layers)]
                yield index, self.plan(scores, sizes, config)

    def choose(self, found: Sequence[float], limit: int) -> list[Size]:
        """Return the size of each layer with the smallest sum of effects at a cost of at most `limit`.

        `found` are the effects of `replacements`; that of a combination is the sum of its parts. What remains of the
        limit is spent on neurons, in layers with the largest effect per neuron first, then on groups.
        """
        sizes, parts = self.sizes(), self.parts()
        effects = [
            dict(zip(parts, found[i * len(parts) : (i + 1) * len(parts)], strict=True))
            for i in range(self.whole.num_hidden_layers)
        ]
        groups = [
            [Option(self._effect(known, size), self.cost(size), self.sufficient(size)) for size in sizes]
            for known in effects
        ]
        chosen = [sizes[i] for i in knapsack(groups, limit - self.prices.outside)]
        return self._spend(chosen, effects, limit - self.of_model(chosen))

    def _effect(self, known: Mapping[Size, float], size: Size) -> float:
        if size in known:
            return known[size]
        return sum(known.get(part, 0.0) for part in ((size[0], self.groups[0]), (self.neurons[0], size[1])))

    def _spend(self, chosen: list[Size], effects: Sequence[Mapping[Size, float]], room: int) -> list[Size]:
        def gain(layer: int) -> float:
            neurons, most = chosen[layer][0], self.groups[0]
            wider = min(n for n in self.neurons if n > neurons)
            return (self._effect(effects[layer], (neurons, most)) - self._effect(effects[layer], (wider, most))) / (
                wider - neurons
            )

        narrow = [i for i, (neurons, _) in enumerate(chosen) if 0 < neurons < self.neurons[0] and self.prices.neuron]
        found = list(chosen)
        for i in sorted(narrow, key=gain, reverse=True):
            more = min(self.neurons[0] - found[i][0], room // self.prices.neuron)
            found[i], room = (found[i][0] + more, found[i][1]), room - more * self.prices.neuron
        for i, (neurons, groups) in enumerate(found):
            more = min(self.groups[0] - groups, room // self.prices.group) if groups and self.prices.group else 0
            found[i], room = (neurons, groups + more), room - more * self.prices.group
        return found


def _numbers(shares: Iterable[float], whole: int) -> tuple[int, ...]:
    return tuple(sorted({whole, *(max(1, round(share * whole)) for share in shares)}, reverse=True))
