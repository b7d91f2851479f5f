"""Distances of the residual stream across every contiguous span of layers, from one pass.

For the span of layers l to l + n - 1, the states before layer l and before layer l + n are compared token by token.
`influence` is the mean of 1 - cosine (ShortGPT; Minitron, section 2.2). `angular_all` and `angular_last` are the mean
of arccos(cosine) / pi over all tokens, or over the last token of each sequence (arXiv 2403.17887, section 3.2).
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
"""Entries of the states that are compared at once, few enough to stay in the CPU's cache."""


class Distances:
    """Running sums over tokens of the distances of all spans."""

    def __init__(self, model: Any) -> None:
        self.residual = ResidualStream(model)
        self.sums: dict[str, Tensor] = {}
        """`influence`, `angular_all` and `angular_last`: float64 [spans], sorted by first layer, then by length. Also
        the numbers of `tokens` and `sequences`."""

    @contextmanager
    def reading(self, ids: Tensor) -> Iterator[None]:
        """Read the forward pass over `ids` [batch, seq] that runs inside `with`."""
        with self.residual.reading() as states:
            yield
        self.add(states)

    def add(self, states: list[Tensor]) -> None:
        """Add the L + 1 states [batch, seq, hidden] of one forward pass."""
        batch, seq, hidden = states[0].shape
        precise = double if states[0].is_cuda else Tensor.float  # a GPU might take float32 products in TF32
        tokens = [precise(state.flatten(0, 1)) for state in states]
        size = max(1, _ENTRIES_AT_ONCE // (len(states) * hidden))
        for parts in zip(*(state.split(size) for state in tokens), strict=True):
            cosines = _cosines(parts)
            self._add("influence", (1 - cosines).sum(0))
            self._add("angular_all", _angles(cosines).sum(0))
        last = _cosines([double(state[:, -1]) for state in states])  # few tokens, so float64 is affordable
        self._add("angular_last", _angles(last).sum(0))
        for name, count in (("tokens", batch * seq), ("sequences", batch)):
            self._add(name, torch.tensor(float(count), dtype=torch.float64, device=last.device))

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total`, the sum over all ranks."""
        self.sums = {name: total(sums) for name, sums in self.sums.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return mean distances, float64 [L, L]: entry [l, n - 1] is that over layers l to l + n - 1, NaN past the end.

        Raises:
            ConfigError: if a state was not finite.
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
    """Return the cosines of all pairs of the L + 1 states [tokens, hidden], per token: float64 [tokens, spans].

    Dot products are computed in the precision of the states: float64 would take three times as long.
    """
    x = torch.stack(list(states), 1)
    with torch.autocast(x.device.type, enabled=False):
        products = x @ x.mT
    squares = double(products.diagonal(dim1=1, dim2=2))
    first, last = torch.triu_indices(len(states), len(states), 1, device=x.device)
    pairs = first * len(states) + last
    # sqrt(a * b) is exact for a = b, so a layer that changes nothing has distance 0.
    norms = _select(squares[:, :, None] * squares[:, None], pairs).sqrt()
    return double(_select(products, pairs)) / norms.clamp_min(torch.finfo(torch.float64).tiny)


def _select(matrices: Tensor, pairs: Tensor) -> Tensor:
    """Return entries of [tokens, n, n] by flat index row * n + column, on a CPU seven times as fast as two indices."""
    return matrices.flatten(1).index_select(1, pairs.to(matrices.device))


def _angles(cosines: Tensor) -> Tensor:
    """Return arccos(cosine) / pi, the angle in half turns."""
    return cosines.clamp(-1, 1).arccos() / math.pi
