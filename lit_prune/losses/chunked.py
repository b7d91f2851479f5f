"""Compute logit-based losses from the last hidden states, without the logits of all tokens in memory at once.

The forward pass takes a few tokens at a time. For each chunk it computes the logits, the losses, and the gradients with
respect to states and head, and keeps only the losses and gradients. Memory therefore does not grow with tokens times
vocabulary, and no logits are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_prune.losses.logit import ClosedForm, LogitLoss, closed_forms
from lit_prune.losses.probabilities import both, negative_log_likelihood
from lit_prune.losses.targets import Target
from lit_prune.models.lm_head import LMHead

Weight = float | Tensor
"""A float, or a detached scalar tensor [] on the device of the states."""

_IN_CACHE = 2**19
"""Logits whose loss a CPU computes at once, few enough to stay in its cache from one operation to the next."""


@dataclass(frozen=True)
class HeadLosses:
    """Losses of one call: each the sum over its tokens divided by `count`; 0 if there are no tokens."""

    loss: Tensor
    """ce_weight * ce_loss + kd_weight * kd_loss, float32 []; has the gradient."""
    ce_loss: Tensor | None
    """Cross-entropy of the successors in nats, float32 [], detached; None without successors."""
    kd_loss: Tensor | None
    """The logit loss, float32 [], detached; None without a target."""


def head_losses(
    states: Tensor,
    head: LMHead,
    *,
    successors: Tensor | None = None,
    ce_weight: Weight = 0.0,
    target: Target | None = None,
    logit_loss: LogitLoss | None = None,
    kd_weight: Weight = 0.0,
    temperature: float = 1.0,
    count: float | None = None,
    chunk: int | None = None,
) -> HeadLosses:
    """Return the cross-entropy and the logit loss of last states [tokens, width], each summed and divided by `count`.

    `count` defaults to the number of tokens; a micro-batch passes the count of its step instead. Successors, the next
    tokens, are int64 [tokens]. If the target has top-k ids, only the student's logits at these ids are compared
    (Minitron, section 3). A term of weight 0.0 is evaluated without a gradient. `chunk` is the number of tokens per
    chunk, by default that of `tokens_at_once`. The result can be backpropagated once.
    """
    terms: dict[str, _Term] = {}
    if successors is not None:
        terms["ce_loss"] = _NextToken(ce_weight, successors)
    if target is not None:
        assert logit_loss is not None
        terms["kd_loss"] = _Imitation(kd_weight, target, logit_loss, temperature)
    inputs = (states, head.weight, head.bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    with torch.no_grad():
        evaluation = _Evaluation(states, head, wanted, list(terms.values()), count)
        loss, means = evaluation.run(chunk or tokens_at_once(len(head.weight), states.is_cuda))
    if any(wanted):
        loss = _Differentiated.apply(loss, evaluation.gradients(), *inputs)
    values = dict(zip(terms, means, strict=True))
    return HeadLosses(loss, values.get("ce_loss"), values.get("kd_loss"))


def tokens_at_once(vocab: int, on_gpu: bool) -> int:
    """Return the tokens per chunk: 64 MB of float32 logits, 512 MB on a GPU, within bounds where matmuls are fast."""
    room, least, most = (2**29, 1024, 8192) if on_gpu else (2**26, 128, 1024)
    return min(max(room // (4 * vocab), least), most)


class _Term(Protocol):
    @property
    def weight(self) -> Weight: ...

    def evaluate(self, logits: Tensor, rows: slice, scale: Weight | None) -> tuple[Tensor, Tensor | None]:
        """Return the losses [n] of logits [n, vocab], and the gradient [n, vocab] of `scale` times their sum.

        All are float32. Without a scale the gradient is None.
        """


@dataclass(frozen=True)
class _NextToken:
    weight: Weight
    successors: Tensor

    def evaluate(self, logits: Tensor, rows: slice, scale: Weight | None) -> tuple[Tensor, Tensor | None]:
        return _by_parts(self._compare, scale, logits, self.successors[rows, None])

    def _compare(self, logits: Tensor, ids: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
        if not differentiate:
            return negative_log_likelihood(logits, ids[:, 0]), None
        log_p, p = both(logits)
        return -log_p.gather(-1, ids)[:, 0], p.scatter_add_(-1, ids, p.new_full(ids.shape, -1.0))


@dataclass(frozen=True)
class _Imitation:
    weight: Weight
    target: Target
    loss: LogitLoss
    temperature: float

    def evaluate(self, logits: Tensor, rows: slice, scale: Weight | None) -> tuple[Tensor, Tensor | None]:
        theirs, ids = self.target.logits(rows)
        if ids is None:  # vocabularies may be padded differently: compare the entries that both have
            shared = min(logits.shape[-1], theirs.shape[-1])
            ours, theirs = logits[..., :shared], theirs[..., :shared]
        else:
            ours = logits.gather(-1, ids)
        if self.temperature != 1:
            ours, theirs = ours / self.temperature, theirs / self.temperature
            scale = None if scale is None else scale / self.temperature
        with torch.autocast(logits.device.type, enabled=False):
            values, gradient = _by_parts(self._compare, scale, ours, theirs)
        if gradient is not None and ids is not None:
            gradient = torch.zeros_like(logits).scatter_add_(-1, ids, gradient)
        elif gradient is not None and gradient.shape != logits.shape:
            gradient = F.pad(gradient, (0, logits.shape[-1] - gradient.shape[-1]))
        return values, gradient

    def _compare(self, ours: Tensor, theirs: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
        form: ClosedForm | None = closed_forms.get(self.loss)
        if not differentiate:
            return self.loss(ours, theirs), None
        return _by_autograd(lambda x: self.loss(x, theirs), ours) if form is None else form(ours, theirs)


def _by_parts(
    compare: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]], scale: Weight | None, logits: Tensor,
    other: Tensor,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compare logits [n, vocab] with `other` [n, ...], on a CPU a few rows at a time.

    Returns the losses [n], and the gradient of `scale` times their sum unless that is None.
    """
    size = len(logits) if logits.is_cuda else max(1, _IN_CACHE // logits.shape[-1])
    parts = zip(logits.split(size), other.split(size), strict=True)
    if scale is None:
        return torch.cat([compare(ours, theirs, False)[0] for ours, theirs in parts]), None
    losses, gradients = [], torch.empty_like(logits)
    for (ours, theirs), gradient in zip(parts, gradients.split(size), strict=True):
        found, unscaled = compare(ours, theirs, True)
        losses.append(found)
        assert unscaled is not None
        torch.mul(unscaled, scale, out=gradient)
    return torch.cat(losses), gradients


def _by_autograd(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        values = loss(leaf)
    (gradient,) = torch.autograd.grad(values, leaf, torch.ones_like(values))
    return values.detach(), gradient


def _counts(weight: Weight) -> bool:
    """Return whether a term is minimised; a tensor counts as nonzero, since reading it would synchronise the GPU."""
    return isinstance(weight, Tensor) or weight != 0


class _Evaluation:
    """One pass over the tokens, chunk by chunk."""

    def __init__(
        self, states: Tensor, head: LMHead, wanted: list[bool], terms: list[_Term], count: float | None
    ) -> None:
        self.states, self.head, self.cast, self.terms = states, head, head.cast(), terms
        self.count = (len(states) if count is None else count) or 1
        self.of_states = torch.zeros_like(states) if wanted[0] else None
        self.of_weight = torch.zeros_like(head.weight, dtype=torch.float32) if wanted[1] else None
        # Products with gradients take the dtype of autocast on a CPU too.
        kind, dtype = states.device.type, head.weight.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
        self.factor = self.cast.weight.to(dtype) if any(wanted) else self.cast.weight
        self.of_bias = None
        if wanted[2] and head.bias is not None:
            self.of_bias = torch.zeros_like(head.bias, dtype=torch.float32)
        self.wanted = any(wanted)

    def run(self, chunk: int) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and the value of each term, float32 []."""
        sums = [torch.zeros((), dtype=torch.float64, device=self.states.device) for _ in self.terms]
        for start in range(0, len(self.states), chunk):
            rows = slice(start, start + chunk)
            for total, losses in zip(sums, self._read(rows), strict=True):
                total += losses.double().sum()
        loss = torch.zeros((), dtype=torch.float64, device=self.states.device)
        for term, total in zip(self.terms, sums, strict=True):
            if _counts(term.weight):
                loss = loss + term.weight * total / self.count
        return loss.float(), [(total / self.count).float() for total in sums]

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of states, weight and bias in their dtypes; None for an input that requires none."""
        of_bias = None if self.of_bias is None else self.of_bias.to(self.head.bias.dtype)  # type: ignore[union-attr]
        return self.of_states, None if self.of_weight is None else self.of_weight.to(self.head.weight.dtype), of_bias

    def _read(self, rows: slice) -> list[Tensor]:
        """Return the losses [n] of each term on these rows and accumulate the gradients."""
        linear = self.cast.linear(self.states[rows])
        logits = linear if self.head.finish is None else self.head.finish(linear)
        losses, of_logits = [], None
        for term in self.terms:
            values, gradient = term.evaluate(logits, rows, self._scale(term))
            losses.append(values)
            of_logits = gradient if of_logits is None else of_logits if gradient is None else of_logits + gradient
        if of_logits is not None:
            self._add(self._through_finish(linear, of_logits), rows)
        return losses

    def _scale(self, term: _Term) -> Weight | None:
        """Return the factor of a token's loss in the gradient; None if no gradient is needed."""
        return term.weight / self.count if self.wanted and _counts(term.weight) else None

    def _through_finish(self, linear: Tensor, of_logits: Tensor) -> Tensor:
        """Return the gradient with respect to the output of the linear map, in the dtype of products with it."""
        if self.head.finish is not None:
            with torch.enable_grad():
                leaf = linear.requires_grad_()
                logits = self.head.finish(leaf)
            of_logits = torch.autograd.grad(logits, leaf, of_logits)[0]
        return of_logits.to(self.factor.dtype)

    def _add(self, of_linear: Tensor, rows: slice) -> None:
        """Accumulate the contribution of these rows to the gradients."""
        if self.of_states is not None:
            self.of_states[rows] = of_linear @ self.factor
        if self.of_weight is not None:
            states = self.states[rows].to(of_linear.dtype)
            if of_linear.dtype == torch.float32:
                self.of_weight.addmm_(of_linear.t(), states)
            else:
                _add_in_cache(self.of_weight, of_linear.t() @ states)
        if self.of_bias is not None:
            self.of_bias += of_linear.float().sum(0)


def _add_in_cache(total: Tensor, more: Tensor) -> None:
    """Add a tensor of another dtype in place: PyTorch first converts it, on a CPU into new memory."""
    size = len(total) if total.is_cuda else max(1, _IN_CACHE // total.shape[-1])
    for part, of_more in zip(total.split(size), more.split(size), strict=True):
        part.add_(of_more)


class _Differentiated(torch.autograd.Function):
    """A scalar loss whose gradients were computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()  # not a view of an input, which FSDP warns of

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place, to avoid a second copy of the head's gradient; autograd raises on a second backward.
        return None, None, *(g if g is None else g.mul_(upstream) for g in ctx.saved_tensors)
