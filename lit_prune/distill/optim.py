"""Optimizer and learning-rate schedule, for pretraining, fine-tuning and distillation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lit_prune.config import Optimizer


def configure(module: nn.Module, optim: Optimizer, steps: int) -> dict[str, Any]:
    """Return the optimizer and per-step schedule of the trainable parameters, in the form that Lightning expects."""
    return configure_parts([(list(module.parameters()), optim)], steps)


def configure_parts(parts: Sequence[tuple[Sequence[nn.Parameter], Optimizer]], steps: int) -> dict[str, Any]:
    """Return one optimizer for parts of a module with their own hyperparameters and schedules, as `configure`.

    All parts have the same algorithm.
    """
    adamw = parts[0][1].algorithm == "adamw"
    groups: list[dict[str, Any]] = []
    schedules: list[Callable[[int], float]] = []
    for parameters, optim in parts:
        trained = [p for p in parameters if p.requires_grad]
        how = {"lr": optim.lr} | ({"betas": (optim.beta1, optim.beta2)} if adamw else {"momentum": optim.beta1})
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay, **how},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, **how},
        ]
        schedules += [functools.partial(_share_of_peak, optim, steps)] * 2
    optimizer = (torch.optim.AdamW if adamw else torch.optim.SGD)(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _share_of_peak(optim: Optimizer, steps: int, step: int) -> float:
    return learning_rate(optim, step, steps) / optim.lr


def learning_rate(optim: Optimizer, step: int, steps: int) -> float:
    """Return the learning rate of 0-based `step`: linear warm-up to `lr`, then cosine to `min_lr` at the last step.

    A run of at most `warmup_steps` steps ends within the warm-up, without decay. If the schedule is longer than the run
    (`schedule_steps`), the run uses the part of it that begins at `schedule_start`.
    """
    step, steps = step + optim.schedule_start, optim.schedule_steps or steps
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    decay = steps - 1 - optim.warmup_steps
    done = (step - optim.warmup_steps) / decay if decay > 0 else 1.0
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
