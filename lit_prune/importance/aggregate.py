"""The nine (batch x sequence) aggregations of Minitron, Table 13, computed from one pass (section 2.2).

First over each sequence: mean |x|, L2 norm (not divided by the length) and biased variance of every unit. Then over
the batch: the same three functions over sequences, from two running sums in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("mean", "l2", "var")


_ENTRIES_AT_ONCE = 2**17
"""Activations that a CPU processes at once, few enough to stay in its cache between the steps."""


def sequence_statistics(activations: Tensor) -> Tensor:
    """Return the `STATISTICS` of each unit over each sequence: [batch, seq, units] -> float64 [3, batch, units]."""
    batch, seq, units = activations.shape
    size = batch if activations.is_cuda else max(1, _ENTRIES_AT_ONCE // (seq * units))
    parts = activations.float().split(size)
    work = torch.empty_like(parts[0])
    return double(torch.cat([_statistics(part, work[: len(part)]) for part in parts], dim=1))


def _statistics(x: Tensor, work: Tensor) -> Tensor:
    """Return the `STATISTICS` of x [sequences, seq, units], float32 [3, sequences, units]; `work` is overwritten.

    The variance takes two passes: E[x^2] - E[x]^2 would lose digits and change ranks.
    """
    mean = x.mean(1, keepdim=True)
    absolute = torch.abs(x, out=work).mean(1)
    centred = torch.sub(x, mean, out=work)
    var = centred.mul_(centred).mean(1)
    l2 = ((var + mean.squeeze(1).square()) * x.shape[1]).sqrt()
    return torch.stack((absolute, l2, var))


def double(x: Tensor) -> Tensor:
    """Return the tensor in float64, moved to the CPU if the device has no float64, as on Apple GPUs."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class SequenceMoments:
    """Running sums over sequences of each statistic and its square; they do not depend on the batch size."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, activations: Tensor) -> None:
        """Add activations [batch, seq, units]."""
        statistics = sequence_statistics(activations)
        new = torch.stack((statistics.sum(1), statistics.square().sum(1)))
        self.sums = new if self.sums is None else self.sums + new
        self.count += statistics.shape[1]


def aggregate(sums: Tensor, count: int, batch: str, seq: str) -> Tensor:
    """Return the score of each unit, float64 [units], from the sums [2, 3, units] over `count` sequences."""
    first, second = sums[:, STATISTICS.index(seq)]
    if batch == "l2":
        return second.sqrt()
    mean = first / count
    return mean if batch == "mean" else (second / count - mean.square()).clamp_min(0)
