"""Losses between the next-token distributions of teacher and student (Minitron, section 3 and Table 15).

Each takes student and teacher logits, float [tokens, vocab], and returns float [tokens], >= 0. For equal logits the
loss and its gradient are 0. A loss need not be differentiable everywhere. The caller applies temperature, top-k, mask
and mean. A loss with a parameter takes it as the keyword `mixture`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.config import ConfigError
from lit_prune.losses.probabilities import both, log_probabilities, probabilities
from lit_prune.registry import Registry

LogitLoss = Callable[[Tensor, Tensor], Tensor]
logit_losses: Registry[LogitLoss] = Registry("distill.logit_loss")

ClosedForm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student, teacher) -> the loss, and the gradient of its sum with respect to the student's logits in a new tensor."""
closed_forms: dict[LogitLoss, ClosedForm] = {}
"""Losses with an analytic gradient, if it makes the whole evaluation faster than autograd by a tenth or more."""


@logit_losses.register("kld")
def kld(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the forward KL divergence, KL(teacher || student), in nats."""
    return kl(log_probabilities(teacher), log_probabilities(student))


@logit_losses.register("reverse_kld")
def reverse_kld(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the reverse KL divergence, KL(student || teacher), in nats."""
    return kl(log_probabilities(student), log_probabilities(teacher))


@logit_losses.register("jsd")
def jsd(student: Tensor, teacher: Tensor, mixture: float = 0.5) -> Tensor:
    """Return the generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649).

    mixture KL(teacher || m) + (1 - mixture) KL(student || m) with m = mixture teacher + (1 - mixture) student.
    """
    ours, theirs = log_probabilities(student), log_probabilities(teacher)
    middle = _log_mixture(theirs, ours, mixture)
    return mixture * kl(theirs, middle) + (1 - mixture) * kl(ours, middle)


@logit_losses.register("skew_kld")
def skew_kld(student: Tensor, teacher: Tensor, mixture: float = 0.1) -> Tensor:
    """Return the skew KL divergence, KL(teacher || mixture teacher + (1 - mixture) student).

    Source: DistiLLM, arXiv 2402.03898, section 3.1.
    """
    ours, theirs = log_probabilities(student), log_probabilities(teacher)
    return kl(theirs, _log_mixture(theirs, ours, mixture))


@logit_losses.register("skew_reverse_kld")
def skew_reverse_kld(student: Tensor, teacher: Tensor, mixture: float = 0.1) -> Tensor:
    """Return the skew reverse KL divergence, KL(student || mixture student + (1 - mixture) teacher).

    Source: DistiLLM, arXiv 2402.03898, section 3.1.
    """
    ours, theirs = log_probabilities(student), log_probabilities(teacher)
    return kl(ours, _log_mixture(ours, theirs, mixture))


@logit_losses.register("mse")
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the probabilities (the papers' formulas take probabilities)."""
    return _squared_distance(probabilities(student), probabilities(teacher))


@logit_losses.register("mse_logits")
def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the logits, averaged over the vocabulary, as in most implementations."""
    return _squared_distance(student, teacher) / student.shape[-1]


@logit_losses.register("cosine")
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine of the probabilities (the papers' formulas take probabilities)."""
    return one_minus_cosine(probabilities(student), probabilities(teacher))


@logit_losses.register("cosine_logits")
def cosine_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine of the logits."""
    return one_minus_cosine(student, teacher)


def logit_loss_of(name: str, mixture: float | None) -> LogitLoss:
    """Return the loss of that name, with `mixture` bound unless it is None.

    Raises:
        ConfigError: if no loss has this name, or a mixture is given and the loss takes none.
    """
    loss = logit_losses[name]
    if mixture is None:
        return loss
    takers = [other for other in logit_losses if "mixture" in inspect.signature(logit_losses[other]).parameters]
    if name not in takers:
        raise ConfigError(f"distill.mixture: {name} takes none; those that do: {', '.join(takers)}")
    return functools.partial(loss, **{"mixture": mixture})


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) over the last dimension, computed as half the squared distance of the unit vectors.

    This form is exactly 0 for equal vectors; 1 - cos would leave a rounding error.
    """
    return _squared_distance(F.normalize(a, dim=-1), F.normalize(b, dim=-1)) / 2


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """Return log(weight p + (1 - weight) q), exact for p = q: the larger logarithm plus a correction <= 0."""
    apart = log_q - log_p
    of_smaller = torch.where(apart > 0, apart.new_full((), weight), 1 - weight)
    return torch.maximum(log_p, log_q) + torch.log1p(of_smaller * torch.expm1(-apart.abs()))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last dimension, with the sum of q - p, which is 0, added.

    This makes every summand >= 0 up to rounding; a negative remainder is subtracted without a gradient.
    """
    p, q = torch.exp(log_p), torch.exp(log_q)
    values = (p * (log_p - log_q) + q - p).sum(-1)
    return values - values.detach().clamp_max(0)


def _closed_form(loss: LogitLoss) -> Callable[[ClosedForm], ClosedForm]:
    return lambda form: closed_forms.setdefault(loss, form)


@_closed_form(kld)
def _kld_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    (log_q, q), (log_p, p) = both(student), both(teacher)
    values = torch.linalg.vecdot(p, log_p.sub_(log_q))
    gradient = q.sub_(p)
    return values.add_(gradient.sum(-1)).clamp_min_(0), gradient


@_closed_form(reverse_kld)
def _reverse_kld_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    (log_q, q), (log_p, p) = both(student), both(teacher)
    difference = log_q.sub_(log_p)
    values = torch.linalg.vecdot(q, difference).add_(p.sub_(q).sum(-1)).clamp_min_(0)
    return values, _through_softmax(q, difference)


@_closed_form(cosine)
def _cosine_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    (_, q), (_, p) = both(student), both(teacher)
    length = q.norm(dim=-1, keepdim=True)
    unit = q / length
    difference = unit - p.div_(p.norm(dim=-1, keepdim=True))
    values = torch.linalg.vecdot(difference, difference) / 2
    return values, _through_softmax(q, difference.sub_(unit.mul_(values[:, None])).div_(length))


def _through_softmax(q: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient with respect to the logits of q from that with respect to q; overwrites `gradient`."""
    return gradient.sub_(torch.linalg.vecdot(q, gradient)[:, None]).mul_(q)
