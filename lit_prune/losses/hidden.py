"""Losses between hidden states of teacher and student (Minitron, section 3 and Table 17).

Each takes student and teacher states, float [tokens, width], and returns float [tokens], >= 0, and 0 for equal states.
States are read after the norm that follows them; the caller projects the student's to the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lit_prune.losses.logit import one_minus_cosine
from lit_prune.registry import Registry

HiddenLoss = Callable[[Tensor, Tensor], Tensor]
hidden_losses: Registry[HiddenLoss] = Registry("distill.hidden_loss")


@hidden_losses.register("cosine")
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine of the states, the best hidden loss in the paper."""
    return one_minus_cosine(student, teacher)


@hidden_losses.register("mse")
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the states, averaged over the width."""
    return (student - teacher).square().mean(-1)
