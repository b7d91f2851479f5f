"""How far the residual stream moves over every contiguous span of layers, in one pass.

Of the span of n layers from layer l on, the states before layer l and before layer l + n are compared token by token:
`influence` is the mean of 1 - cosine (ShortGPT; Minitron, section 2.2), `angular_*` the mean of arccos(cosine) / pi
(arXiv 2403.17887, section 3.2) over all tokens, or over the last one of each sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_prune.importance.aggregate import double
from lit_prune.importance.calibration_pass import check_finite
from lit_prune.models.residual_stream import ResidualStream

_ENTRIES_AT_ONCE = 2**19
"""Entries of the states that are compared at once: few enough to stay in the processor's cache."""


class Distances:
    """Running sums over tokens of the distances of all spans."""

    def __init__(self, model: Any) -> None:
        self.residual = ResidualStream(model)
        self.sums: dict[str, Tensor] = {}
        """`influence`, `angular_all`, `angular_last`: float64 [spans], by first layer, then by length; and the
        number of `tokens` and `sequences`."""

    @contextmanager
    def reading(self, ids: Tensor) -> Iterator[None]:
        """Take in the forward pass over `ids` [batch, seq] inside `with`."""
        with self.residual.reading() as states:
            yield
        self.add(states)

    def add(self, states: list[Tensor]) -> None:
        """Take in the L + 1 states [batch, seq, hidden] of one forward pass."""
        batch, seq, hidden = states[0].shape
        precise = double if states[0].is_cuda else Tensor.float  # a GPU might take float32 products in TF32
        tokens = [precise(state.flatten(0, 1)) for state in states]
        size = max(1, _ENTRIES_AT_ONCE // (len(states) * hidden))
        for parts in zip(*(state.split(size) for state in tokens), strict=True):
            cosines = _cosines(parts)
            self._add("influence", (1 - cosines).sum(0))
            self._add("angular_all", _angles(cosines).sum(0))
        last = _cosines([double(state[:, -1]) for state in states])  # few, so that they can be had exactly
        self._add("angular_last", _angles(last).sum(0))
        for name, count in (("tokens", batch * seq), ("sequences", batch)):
            self._add(name, torch.tensor(float(count), dtype=torch.float64, device=last.device))

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total` over the ranks."""
        self.sums = {name: total(sums) for name, sums in self.sums.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Means, float64 [L, L]: entry [l, n - 1] is the distance over n layers from layer l on, NaN past the end.

        Raises:
            ConfigError: a state was not finite.
        """
        num_layers = len(self.residual.layers)
        first, last = torch.triu_indices(num_layers + 1, num_layers + 1, 1)
        means = {}
        for name, unit in (("influence", "tokens"), ("angular_all", "tokens"), ("angular_last", "sequences")):
            spans = (self.sums[name] / self.sums[unit]).cpu()
            check_finite("what passes between the layers", spans)
            means[name] = torch.full((num_layers, num_layers), math.nan, dtype=torch.float64)
            means[name][first, last - first - 1] = spans
        return means

    def _add(self, name: str, more: Tensor) -> None:
        self.sums[name] = self.sums[name] + more if name in self.sums else more


def _cosines(states: Sequence[Tensor]) -> Tensor:
    """Cosines of all pairs of the L + 1 states [tokens, hidden] of each token: float64 [tokens, spans].

    Products are taken in the states' own precision: in float64 they would cost three times as much.
    """
    x = torch.stack(list(states), 1)
    with torch.autocast(x.device.type, enabled=False):
        products = x @ x.mT
    squares = double(products.diagonal(dim1=1, dim2=2))
    first, last = torch.triu_indices(len(states), len(states), 1, device=x.device)
    pairs = first * len(states) + last
    # The root of a product is exact where both are the same: a layer that changes nothing is at no distance.
    norms = _select(squares[:, :, None] * squares[:, None], pairs).sqrt()
    return double(_select(products, pairs)) / norms.clamp_min(torch.finfo(torch.float64).tiny)


def _select(matrices: Tensor, pairs: Tensor) -> Tensor:
    """Entries of [tokens, n, n] by row * n + column: seven times as fast on the CPU as by row and column."""
    return matrices.flatten(1).index_select(1, pairs.to(matrices.device))


def _angles(cosines: Tensor) -> Tensor:
    """Angles in half turns."""
    return cosines.clamp(-1, 1).arccos() / math.pi
