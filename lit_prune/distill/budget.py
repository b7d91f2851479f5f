"""Convert a budget in tokens or FLOPs to optimizer steps. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from lit_prune.config import ConfigError, Distill


def tokens_of_step(distill: Distill) -> int:
    """Return the number of tokens that an optimizer step reads."""
    return distill.batch_size * distill.seq_len


def with_steps(distill: Distill, flops_of_token: Callable[[], float]) -> Distill:
    """Return the retraining with its budget in steps, rounded to the nearest integer, halves up.

    `flops_of_token` is only called if the budget is `max_flops`.

    Raises:
        ConfigError: if there are two budgets, or the budget is less than a step.
    """
    if distill.max_tokens is None and distill.max_flops is None:
        return distill
    if distill.max_tokens is not None and distill.max_flops is not None:
        raise ConfigError(f"distill.max_tokens: must be null where max_flops is set, got {distill.max_tokens}")
    if distill.max_tokens is not None:
        budget, step, what = float(distill.max_tokens), float(tokens_of_step(distill)), "max_tokens"
    else:
        assert distill.max_flops is not None
        budget, step, what = distill.max_flops, tokens_of_step(distill) * flops_of_token(), "max_flops"
    if not budget >= step > 0:
        raise ConfigError(f"distill.{what}: must be >= {step:.6g}, the cost of a step, got {budget:.6g}")
    return replace(distill, max_steps=math.floor(budget / step + 0.5), max_tokens=None, max_flops=None)
