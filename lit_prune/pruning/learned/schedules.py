"""Learning rates that fall over a training of masks, as shares of their peak at each 0-based step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Share = Callable[[int], float]
"""Step -> share of the peak rate."""


def constant(step: int) -> float:
    """Stay at the peak."""
    return 1.0


def linear(steps: int, warmup: int = 0) -> Share:
    """Rise linearly over the first `warmup` steps, then fall linearly to 0 after `steps`."""

    def share(step: int) -> float:
        risen = (step + 1) / warmup if warmup else 1.0
        return min(risen, max(0.0, (steps - step) / max(1, steps - warmup)))

    return share


def cosine(steps: int, least: float = 0.0, warmup: int = 0) -> Share:
    """Rise linearly over the first `warmup` steps, then fall along a cosine to `least` at step `steps`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2

    return share


def scheduled(optimizer: Optimizer, *shares: Share) -> dict[str, Any]:
    """Return an optimizer and its schedule in the form that Lightning expects.

    `shares` has one schedule for all groups of parameters, or one for each.
    """
    schedule = LambdaLR(optimizer, list(shares) if len(shares) > 1 else shares[0])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
