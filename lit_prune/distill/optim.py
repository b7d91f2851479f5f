"""AdamW and its schedule, the same for pretraining, healing and distillation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lit_prune.config import Optim


def configure(module: nn.Module, optim: Optim, steps: int) -> dict[str, Any]:
    """Optimizer and step-wise schedule of the trainable parameters, as Lightning takes them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2))
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: learning_rate(optim, step, steps) / optim.lr)
    return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up to `lr`, then cosine to `min_lr` at the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    decay = steps - 1 - optim.warmup
    done = (step - optim.warmup) / decay if decay > 0 else 1.0
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
