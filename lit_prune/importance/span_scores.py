"""Scores of spans of layers, measured when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class SpanScores(Sequence[Tensor]):
    """Scores of spans, by length; each length is measured when it is first read."""

    def __init__(self, layers: Tensor, measure: Callable[[int], Tensor]) -> None:
        self._whole, self._measure = len(layers), measure
        self._known = {1: layers}

    def __len__(self) -> int:
        return self._whole

    def __getitem__(self, index: Any) -> Any:
        """Return the scores of spans of n = `index` + 1 layers, by first layer, [L - n + 1]."""
        if not 0 <= index < self._whole:
            raise IndexError(f"spans of {index + 1} layers out of {self._whole}")
        length = index + 1
        if length not in self._known:
            self._known[length] = self._measure(length)
        return self._known[length]
