"""Where a loss has no kink: its gradient can be compared with another only there.

A published loss may have kinks, total variation for one. The gradient jumps there, so float32 and float64 may be on
different sides of the jump, however right both are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1e-5
"""Relative distance over which the gradient is looked at, wider than the rounding of float32 logits."""
DRAWS = 4


def smooth_tokens(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """Return at which tokens the gradient of a loss has no jump nearby, bool [tokens].

    Takes float64 inputs [tokens, width]. The second difference of a gradient is of the order STEP^2 where the gradient
    is smooth, and the jump where there is one between.
    """
    generator = torch.Generator().manual_seed(0)
    smooth = torch.ones(len(student), dtype=torch.bool)
    middle = _gradient(loss, student, teacher)
    for _ in range(DRAWS):
        ours, theirs = (_nudge(x, generator) for x in (student, teacher))
        above = _gradient(loss, student + ours, teacher + theirs)
        below = _gradient(loss, student - ours, teacher - theirs)
        smooth &= (above - 2 * middle + below).norm(dim=-1) <= 1e-7 * middle.norm(dim=-1)
    return smooth


def _nudge(x: Tensor, generator: torch.Generator) -> Tensor:
    size = x.square().mean(-1, keepdim=True).sqrt().clamp_max(1.0)
    return STEP * size * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    leaf = student.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher.detach()).sum(), leaf)[0]
