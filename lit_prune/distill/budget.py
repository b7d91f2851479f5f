"""How long a retraining is: the steps that a budget in tokens or FLOPs buys. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from lit_prune.config import ConfigError, Distill


def tokens_of_step(distill: Distill) -> int:
    """Tokens an optimizer step reads."""
    return distill.batch * distill.block


def with_steps(distill: Distill, flops_of_token: Callable[[], float]) -> Distill:
    """The same retraining asked for in steps: the whole number of them nearest to its budget, the upper of two.

    `flops_of_token` is only asked where the budget is one of FLOPs.

    Raises:
        ConfigError: two budgets, or one that is less than a step.
    """
    if distill.tokens is None and distill.flops is None:
        return distill
    if distill.tokens is not None and distill.flops is not None:
        raise ConfigError("distill.tokens: give one of steps, tokens and flops, which decides how long")
    if distill.tokens is not None:
        budget, step, what = float(distill.tokens), float(tokens_of_step(distill)), "tokens"
    else:
        assert distill.flops is not None
        budget, step, what = distill.flops, tokens_of_step(distill) * flops_of_token(), "flops"
    if not budget >= step > 0:
        raise ConfigError(f"distill.{what}: {budget:.6g} asked for, a step takes {step:.6g}")
    return replace(distill, steps=math.floor(budget / step + 0.5), tokens=None, flops=None)
