"""Losses per sequence, summed over its scored tokens, from which means and bootstrap resamples are taken later."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SequenceLosses:
    """The loss of each of n sequences, on the CPU."""

    sums: Tensor
    """Summed over the scored tokens of a sequence, float64 [n]; nats for a cross-entropy or a divergence."""
    tokens: Tensor
    """Scored tokens of a sequence, int64 [n]."""

    @property
    def num_tokens(self) -> int:
        """Scored tokens of all sequences."""
        return int(self.tokens.sum())

    @property
    def mean(self) -> float:
        """Loss per scored token."""
        return (self.sums.sum() / self.tokens.sum()).item()
