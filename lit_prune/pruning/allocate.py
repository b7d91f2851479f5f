"""Allocators: choose the units to keep from scores and a target shape.

A layer allocator chooses the layers, a width allocator the neurons and heads of each kept layer. Higher scores mean
keep; ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_prune.importance.criteria import Scores
from lit_prune.models.shape import ModelShape, parameter_counter, shape_of
from lit_prune.pruning.plan import Indices, LayerPlan, Merge
from lit_prune.registry import Registry

Choose = Callable[[Scores, int, int], Indices]


@dataclass(frozen=True)
class LayerAllocator:
    """A rule that chooses the layers to keep."""

    choose: Choose
    """(scores, number of layers, number of layers to drop) -> the layers to keep."""
    reads: str | None
    """The axis whose scores it reads: "layer", "span", or None."""


WidthAllocator = Callable[[Scores, Indices, ModelShape, Any], tuple[LayerPlan, ...]]
"""(scores, layers to keep, target shape, config) -> the plan of each kept layer."""

layer_allocators: Registry[LayerAllocator] = Registry("prune.layer_selection")
width_allocators: Registry[WidthAllocator] = Registry("prune.width_allocation")


def layer_allocator(name: str, reads: str | None) -> Callable[[Choose], Choose]:
    """Register a function that chooses layers, with the axis of the scores it reads."""

    def add(choose: Choose) -> Choose:
        layer_allocators.register(name)(LayerAllocator(choose, reads))
        return choose

    return add


@layer_allocator("lowest_score", reads="layer")
def lowest(scores: Scores, whole: int, drop: int) -> Indices:
    """Drop the layers with the lowest individual scores (ShortGPT; Minitron, section 2.2)."""
    return best(scores["layer"][0], whole - drop)


@layer_allocator("contiguous", reads="span")
def contiguous(scores: Scores, whole: int, drop: int) -> Indices:
    """Drop the contiguous span of layers with the lowest score (arXiv 2403.17887, section 3.2)."""
    start = int(scores["span"][drop - 1].argmin())
    return _without(whole, start, drop)


@layer_allocator("last", reads=None)
def tail(scores: Scores, whole: int, drop: int) -> Indices:
    """Keep the first layers; reads no score (arXiv 2411.15558, "reverse order")."""
    return _without(whole, whole - drop, drop)


@layer_allocator("last_but_final", reads=None)
def tail_but_last(scores: Scores, whole: int, drop: int) -> Indices:
    """Keep the first layers and the final one; reads no score (arXiv 2403.17887, section 4.4; In Practice)."""
    return _without(whole, max(0, whole - 1 - drop), drop)


@width_allocators.register("uniform")
def uniform(scores: Scores, layers: Indices, target: ModelShape, config: Any) -> tuple[LayerPlan, ...]:
    """Keep as many units in every layer: the best neurons and KV groups, the best heads of each (Minitron, 2.3)."""
    whole = shape_of(config)
    return tuple(
        LayerPlan(
            index,
            _units(scores, "neuron", index, target.intermediate_size, whole.intermediate_size),
            _best_heads(scores, index, whole, target.num_key_value_heads, target.heads_per_group),
        )
        for index in layers
    )


@width_allocators.register("global")
def everywhere(scores: Scores, layers: Indices, target: ModelShape, config: Any) -> tuple[LayerPlan, ...]:
    """Keep the neurons and heads that score highest across the whole model, within the parameters of `target`.

    Scores are divided by their mean over the layer and axis, to be comparable between layers and axes. Heads are chosen
    in rows: the weakest heads of all KV groups of a layer are dropped together. Every layer keeps at least one neuron
    and one head per group.
    """
    whole = shape_of(config)
    fewer_heads = target.heads_per_group < whole.heads_per_group
    neurons = [scores["neuron"][i] for i in layers] if target.intermediate_size < whole.intermediate_size else []
    rows = _rows(scores, layers, whole, target.num_key_value_heads) if fewer_heads else []
    kept = _Budget(config, target).spend(
        {"neuron": [_comparable(s) for s in neurons], "head": [_comparable(r) for r in rows]},
        fixed={"neuron": whole.intermediate_size, "head": whole.heads_per_group},
    )
    return tuple(
        LayerPlan(
            index,
            _units(scores, "neuron", index, kept["neuron"][i], whole.intermediate_size),
            _best_heads(scores, index, whole, target.num_key_value_heads, kept["head"][i]),
        )
        for i, index in enumerate(layers)
    )


def proportional_counts(weights: Tensor, total: int, most: int) -> list[int]:
    """Return numbers of units in proportion to positive `weights` [layers], each from 1 to `most`, that sum to `total`.

    What exceeds `most` goes to the other layers in the same proportion. Fractions are rounded to the nearest numbers
    with the right sum, by the largest remainders.
    """
    if not len(weights) <= total <= len(weights) * most:
        raise ValueError(f"total: must be {len(weights)} to {len(weights) * most}, got {total}")
    weights, low, high = weights.double(), 0.0, most / float(weights.min())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if (weights * middle).clamp(1, most).sum() > total else (middle, high)
    exact = (weights * high).clamp(1, most)
    counts = exact.floor().long()
    order = torch.sort(exact - counts, descending=True, stable=True).indices
    counts[order[: total - int(counts.sum())]] += 1
    return counts.tolist()


_HALVINGS = 100
"""Steps of a bisection, more than a float64 has digits."""


def hidden_channels(scores: Scores, count: int, whole: int) -> Indices:
    """Return the `count` hidden channels with the highest scores."""
    return tuple(range(whole)) if count == whole else best(scores["hidden"][0], count)


class _Budget:
    """A budget of parameters for neurons and rows of heads; the price is that of one more unit in one layer."""

    def __init__(self, config: Any, target: ModelShape) -> None:
        count, self.layers = parameter_counter(config), target.num_hidden_layers
        base = ModelShape(
            target.num_hidden_layers, target.hidden_size, 1, target.num_key_value_heads, target.num_key_value_heads
        )
        self.base, self.total = count(base), count(target)
        more = {
            "neuron": ModelShape(
                target.num_hidden_layers, target.hidden_size, 2, target.num_key_value_heads, target.num_key_value_heads
            ),
            "head": ModelShape(
                target.num_hidden_layers,
                target.hidden_size,
                1,
                2 * target.num_key_value_heads,
                target.num_key_value_heads,
            ),
        }
        self.price = {axis: (count(shape) - self.base) // self.layers for axis, shape in more.items()}

    def spend(self, scores: dict[str, list[Tensor]], fixed: dict[str, int]) -> dict[str, list[int]]:
        """Return the number of units per axis and layer, bought in the order of their scores until the budget is spent.

        Axes without scores keep their `fixed` number.
        """
        kept = {axis: [1 if scores[axis] else fixed[axis]] * self.layers for axis in scores}
        left = self.total - self.base
        left -= sum(self.price[axis] * (n - 1) for axis in kept for n in kept[axis])
        offers = sorted(
            (-float(score), axis, layer)
            for axis, layers in scores.items()
            for layer, ranked in enumerate(layers)
            for score in torch.sort(ranked, descending=True).values[1:]
        )
        for _, axis, layer in offers:
            if self.price[axis] <= left:
                kept[axis][layer] += 1
                left -= self.price[axis]
        return kept


def _comparable(scores: Tensor) -> Tensor:
    return scores / scores.mean().clamp_min(torch.finfo(torch.float32).tiny)


def _rows(scores: Scores, layers: Indices, whole: ModelShape, groups: int) -> list[Tensor]:
    """Return the scores of each layer's rows of heads; row i is the mean over kept groups of their i-th best heads."""
    ranked = [scores["head"][i].view(-1, whole.heads_per_group).sort(descending=True).values for i in layers]
    return [
        layer[list(_best_groups(scores["head"][i], whole, groups))].mean(0)
        for i, layer in zip(layers, ranked, strict=True)
    ]


def _units(scores: Scores, axis: str, layer: int, count: int, whole: int) -> Indices:
    return tuple(range(whole)) if count == whole else best(scores[axis][layer], count)


def _best_heads(scores: Scores, layer: int, whole: ModelShape, groups: int, per_group: int) -> Indices:
    """Return the best query heads of each of the best KV groups."""
    size = whole.heads_per_group
    if groups * per_group == whole.num_attention_heads:
        return tuple(range(whole.num_attention_heads))
    heads = scores["head"][layer]
    by_group = heads.view(whole.num_key_value_heads, size)
    return tuple(g * size + i for g in _best_groups(heads, whole, groups) for i in best(by_group[g], per_group))


def _best_groups(heads: Tensor, whole: ModelShape, count: int) -> Indices:
    """Return the KV groups whose query heads score highest on average.

    LLM-Pruner ranks groups by a sum that includes the weights of the shared keys and values.
    """
    return best(heads.view(whole.num_key_value_heads, -1).mean(1), count)


def best(scores: Tensor, count: int) -> Indices:
    """Return the indices of the `count` highest scores, ascending."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return tuple(sorted(order[:count].tolist()))


def _without(whole: int, start: int, drop: int) -> Indices:
    return tuple(i for i in range(whole) if not start <= i < start + drop)


def residual_merges(scores: Tensor, layer: LayerPlan, whole: ModelShape, weight: float) -> tuple[Merge, ...]:
    """Return merges that pair the weakest kept and strongest pruned heads of each KV group (Minitron, section 2.3).

    With L heads sorted by importance and K kept, head i is paired with head 2K - i + 1 for i in [2K - L + 1, K]; the
    paper prints the lower bound K - (L - K), one too low. In multi-head attention all heads of a layer are one group.
    """
    size = whole.heads_per_group if whole.heads_per_group > 1 else whole.num_attention_heads
    merges = []
    for group in range(whole.num_attention_heads // size):
        order = torch.sort(scores[group * size : (group + 1) * size], descending=True, stable=True).indices
        heads = [group * size + int(i) for i in order]
        keeping = [head for head in heads if head in layer.heads]
        gone = [head for head in heads if head not in layer.heads]
        pairs = zip(reversed(keeping), gone, strict=False)
        merges += [Merge(kept, pruned, weight) for kept, pruned in pairs if keeping]
    return tuple(sorted(merges))
