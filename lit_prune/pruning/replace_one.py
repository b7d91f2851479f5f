"""Score variants of layers by replacing one at a time, and choose one for each layer (Puzzle, arXiv 2411.19146)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.criteria import Scores
from lit_prune.importance.layer_ablation import next_token_losses, sequences_at_once
from lit_prune.losses.logit import logit_losses
from lit_prune.models.residual_stream import ResidualStream
from lit_prune.pruning.allocate import uniform
from lit_prune.pruning.knapsack import Option, knapsack, least_cost
from lit_prune.pruning.masked import masked
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts

Size = tuple[int, int]
"""Neurons and KV groups of a variant of a layer; (0, 0) if the layer is dropped."""


@dataclass(frozen=True)
class Library:
    """The variants of every layer: each combination of a number of neurons and of KV groups, and no layer at all."""

    costs: UnitCosts
    neurons: Sequence[int]
    """Descending, the first is the whole MLP."""
    groups: Sequence[int]
    """Descending, the first is the whole attention."""
    drops: bool
    """Whether layers may be dropped."""

    @staticmethod
    def of(costs: UnitCosts, widths: Iterable[float], groups: Iterable[float], drops: bool) -> Library:
        """Return the library with these shares of neurons and of KV groups beside the whole."""
        whole = costs.whole
        return Library(
            costs, _numbers(widths, whole.intermediate_size),
            _numbers(groups if costs.prunes_groups else (), whole.num_key_value_heads), drops,
        )  # fmt: skip

    def sizes(self) -> list[Size]:
        """Return the variants of a layer, the whole one first."""
        return [(n, g) for g in self.groups for n in self.neurons] + ([(0, 0)] if self.drops else [])

    def parts(self) -> list[Size]:
        """Return the variants to score: one sub-layer or the whole layer replaced; others are sums of these."""
        n, g = self.neurons[0], self.groups[0]
        return (
            [(other, g) for other in self.neurons[1:]]
            + [(n, other) for other in self.groups[1:]]
            + ([(0, 0)] if self.drops else [])
        )

    def cost(self, size: Size) -> int:
        """Return the cost of a layer of this size."""
        whole, (neurons, groups) = self.costs.whole, size
        if not groups:
            return 0
        less = (whole.intermediate_size - neurons) * self.costs.neuron
        return self.costs.layer - less - (whole.num_key_value_heads - groups) * self.costs.group

    def outside(self) -> int:
        """Return the cost of all that lies outside the layers."""
        return self.costs.total - self.costs.whole.num_hidden_layers * self.costs.layer

    def sufficient(self, size: Size) -> bool:
        """Return whether one layer of this size is enough: it must exist, and have all KV groups if one must."""
        return size[1] == self.groups[0] if self.costs.needs_full_layer else size[1] > 0

    def least(self) -> int:
        """Return the cost of the cheapest model."""
        group = [Option(0.0, self.cost(size), self.sufficient(size)) for size in self.sizes()]
        return self.outside() + least_cost([group] * self.costs.whole.num_hidden_layers)

    def layer(self, scores: Scores, index: int, size: Size, config: Any) -> tuple[LayerPlan, ...]:
        """Return the plan of a layer of this size, with the units of the highest scores; () if it is dropped."""
        whole, (neurons, groups) = self.costs.whole, size
        if not groups:
            return ()
        heads = whole.num_attention_heads // whole.num_key_value_heads * groups
        target = replace(whole, intermediate_size=neurons, num_attention_heads=heads, num_key_value_heads=groups)
        return uniform(scores, (index,), target, config)

    def plan(self, scores: Scores, sizes: Iterable[Size], config: Any) -> PrunePlan:
        """Return the plan whose layers have these sizes."""
        layers = (one for i, size in enumerate(sizes) for one in self.layer(scores, i, size, config))
        return replace(PrunePlan.everything(self.costs.whole), layers=tuple(layers))

    def replacements(self, scores: Scores, config: Any) -> Iterator[tuple[int, PrunePlan]]:
        """Yield each layer with each variant of `parts` in it, as the plan of a model whose other layers are whole."""
        whole = (self.neurons[0], self.groups[0])
        for index in range(self.costs.whole.num_hidden_layers):
            for size in self.parts():
                sizes = [size if i == index else whole for i in range(self.costs.whole.num_hidden_layers)]
                yield index, self.plan(scores, sizes, config)

    def choose(self, found: Sequence[float], limit: int) -> list[Size]:
        """Return the size of each layer with the smallest sum of effects at a cost of at most `limit`.

        `found` are the effects of `replacements`; that of a combination is the sum of its parts. What remains of the
        limit is spent on neurons, in layers with the largest effect per neuron first, then on groups.
        """
        sizes, parts = self.sizes(), self.parts()
        effects = [
            dict(zip(parts, found[i * len(parts) : (i + 1) * len(parts)], strict=True))
            for i in range(self.costs.whole.num_hidden_layers)
        ]
        groups = [
            [Option(self._effect(known, size), self.cost(size), self.sufficient(size)) for size in sizes]
            for known in effects
        ]
        chosen = [sizes[i] for i in knapsack(groups, limit - self.outside())]
        return self._spend(chosen, effects, limit - self.outside() - sum(map(self.cost, chosen)))

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

        narrow = [i for i, (neurons, _) in enumerate(chosen) if 0 < neurons < self.neurons[0]]
        found = list(chosen)
        for i in sorted(narrow, key=gain, reverse=True):
            more = min(self.neurons[0] - found[i][0], room // self.costs.neuron)
            found[i], room = (found[i][0] + more, found[i][1]), room - more * self.costs.neuron
        for i, (neurons, groups) in enumerate(found):
            more = min(self.groups[0] - groups, room // self.costs.group) if groups else 0
            found[i], room = (neurons, groups + more), room - more * self.costs.group
        return found


def _numbers(shares: Iterable[float], whole: int) -> tuple[int, ...]:
    return tuple(sorted({whole, *(max(1, round(share * whole)) for share in shares)}, reverse=True))


@torch.inference_mode()
def effects_of(
    model: Any, plans: Sequence[tuple[int, PrunePlan]], batch: dict[str, Tensor], measure: Literal["kl", "loss"],
    on_progress: Callable[[int], None], measured: Callable[[Callable[[], float]], float] = lambda measure: measure(),
) -> list[float]:  # fmt: skip
    """Return how much each plan changes the output of the model, in nats per scored token.

    `kl` is KL(whole || pruned) of the next-token distributions, `loss` the increase of the language-model loss. Each
    plan comes with the first layer that it changes; the layers before it are not computed again. `batch` is
    {`input_ids`, `labels`: int64 [sequences, seq]}; `on_progress` gets the number of sequences read, summed over plans.
    `measured` may know changes from an interrupted run.
    """
    stream, sums, count, done = ResidualStream(model), [0.0] * len(plans), 0, 0
    size = sequences_at_once(batch["input_ids"], model.config.vocab_size)
    for ids, labels in zip(batch["input_ids"].split(size), batch["labels"].split(size), strict=True):
        part = _Part(model, stream, ids, labels, (labels[:, 1:] != IGNORED).flatten())
        for i, (first, plan) in enumerate(plans):
            sums[i] += measured(functools.partial(part.distance, first, plan, measure))
            done += len(ids)
            on_progress(done)
        count += int(part.scored.sum())
    return [total / count for total in sums]


@dataclass(frozen=True)
class _Part:
    """Sequences that fit the memory limit together, and the output of the whole model on them."""

    model: Any
    stream: ResidualStream
    ids: Tensor
    labels: Tensor
    scored: Tensor

    @functools.cached_property
    def whole(self) -> tuple[list[Tensor], _Output]:
        """The input of every layer, and the output."""
        with self.stream.reading() as states:
            output = _Output(self.model, self.ids, self.labels, self.scored)
        return states, output

    def distance(self, first: int, plan: PrunePlan, measure: str) -> float:
        """Return how much a plan, which changes no layer before `first`, changes the output, summed over tokens."""
        states, whole = self.whole
        with self.stream.resuming(states[first], first), masked(self.model, plan):
            return _Output(self.model, self.ids, self.labels, self.scored).distance(whole, measure)


class _Output:
    """The logits of a model at scored positions, and the sum of its losses."""

    def __init__(self, model: Any, ids: Tensor, labels: Tensor, scored: Tensor) -> None:
        logits = model(input_ids=ids, use_cache=False).logits
        self.logits = logits[:, :-1].flatten(0, 1)[scored]
        self.loss = float(double(next_token_losses(logits, labels)).sum())

    def distance(self, whole: _Output, measure: str) -> float:
        if measure == "loss":
            return self.loss - whole.loss
        return float(double(logit_losses["kld"](self.logits, whole.logits)).sum())


def search(
    model: Any, library: Library, scores: Scores, limit: int, batch: dict[str, Tensor], measure: Literal["kl", "loss"],
    counter: Callable[[str, int, str], Callable[[int], None]], measured: Callable[[Callable[[], float]], float],
) -> PrunePlan:  # fmt: skip
    """Measure every variant in every layer and return the best choice within the limit; `scores` rank the units."""
    plans = list(library.replacements(scores, model.config))
    count = counter("replacing layers", len(plans) * len(batch["input_ids"]), "sequence")
    found = effects_of(model, plans, batch, measure, count, measured)
    return library.plan(scores, library.choose(found, limit), model.config)
