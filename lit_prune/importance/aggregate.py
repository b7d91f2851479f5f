"""The nine (batch x sequence) aggregations of Minitron, Table 13, from one stream (section 2.2).

Sequence first: each sequence gives every unit three numbers, mean |x|, L2 norm (not divided by the length) and biased
variance. Batch second: the same three functions over sequences, from two running sums in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("mean", "l2", "var")


def sequence_statistics(activations: Tensor) -> Tensor:
    """`STATISTICS` of each unit over each sequence: [batch, seq, units] -> float64 [3, batch, units].

    The variance is taken in two passes: the difference of mean squares loses digits and with them ranks.
    """
    x = activations.float()
    mean = x.mean(1)
    var = (x - mean[:, None]).square().mean(1)
    l2 = ((var + mean.square()) * x.shape[1]).sqrt()
    statistics = torch.stack((x.abs().mean(1), l2, var))
    return (statistics.cpu() if x.device.type == "mps" else statistics).double()  # Apple's GPUs have no float64


class SequenceMoments:
    """Running sums over sequences of each statistic and of its square; independent of how sequences are batched."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, activations: Tensor) -> None:
        """Take in activations [batch, seq, units]."""
        statistics = sequence_statistics(activations)
        new = torch.stack((statistics.sum(1), statistics.square().sum(1)))
        self.sums = new if self.sums is None else self.sums + new
        self.count += statistics.shape[1]


def aggregate(sums: Tensor, count: int, batch: str, seq: str) -> Tensor:
    """Score of each unit, float64 [units], from the sums [2, 3, units] over `count` sequences."""
    first, second = sums[:, STATISTICS.index(seq)]
    if batch == "l2":
        return second.sqrt()
    mean = first / count
    return mean if batch == "mean" else (second / count - mean.square()).clamp_min(0)
