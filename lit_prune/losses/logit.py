"""Losses between the next-token distributions of teacher and student (Minitron, section 3 and Table 15).

Each takes student and teacher logits, float [tokens, vocab], and returns float [tokens], >= 0, 0 where they agree.
Temperature, masking and averaging are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.registry import Registry

LogitLoss = Callable[[Tensor, Tensor], Tensor]
logit_losses: Registry[LogitLoss] = Registry("logit loss")


@logit_losses.register("kld")
def kld(student: Tensor, teacher: Tensor) -> Tensor:
    """Forward KL divergence, KL(teacher || student), in nats."""
    return _kl(F.log_softmax(teacher, -1), F.log_softmax(student, -1))


@logit_losses.register("reverse_kld")
def reverse_kld(student: Tensor, teacher: Tensor) -> Tensor:
    """Reverse KL divergence, KL(student || teacher), in nats."""
    return _kl(F.log_softmax(student, -1), F.log_softmax(teacher, -1))


@logit_losses.register("mse")
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the probabilities (the papers' formulas take probabilities)."""
    return _squared_distance(student.softmax(-1), teacher.softmax(-1))


@logit_losses.register("mse_logits")
def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the logits, averaged over the vocabulary (as most implementations have it)."""
    return _squared_distance(student, teacher) / student.shape[-1]


@logit_losses.register("cosine")
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the probabilities (the papers' formulas take probabilities)."""
    return one_minus_cosine(student.softmax(-1), teacher.softmax(-1))


@logit_losses.register("cosine_logits")
def cosine_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the logits."""
    return one_minus_cosine(student, teacher)


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) over the last dimension, as half the squared distance of the unit vectors.

    The difference form is exact at agreement, where 1 - cos would leave the rounding of 1.
    """
    return _squared_distance(F.normalize(a, dim=-1), F.normalize(b, dim=-1)) / 2


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) with the sum of q - p added, which is 0.

    It makes every entry of the sum >= 0, so that close to agreement rounding leaves no negative divergence.
    """
    p, q = torch.exp(log_p), torch.exp(log_q)
    return (p * (log_p - log_q) + q - p).sum(-1)
