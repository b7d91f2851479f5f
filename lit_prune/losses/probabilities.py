"""Probabilities and log-probabilities of logits [..., vocab], without the bias of PyTorch's softmax on a CPU.

`softmax`, `log_softmax` and `cross_entropy` accumulate the exponentials of a row in a few float32 partial sums: over
49k entries the result is off by 1e-5 nats, in the same direction for every token. `sum` and `logsumexp` use pairwise
summation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_prune.data.tokens import IGNORED


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax(logits), differentiable."""
    shifted = logits - logits.detach().amax(-1, keepdim=True)  # else log p gets the maximum's rounding
    return shifted - shifted.logsumexp(-1, keepdim=True)


def probabilities(logits: Tensor) -> Tensor:
    """Return softmax(logits), differentiable."""
    return log_probabilities(logits).exp()


def both(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log softmax(logits) and its exponential, two new tensors without a gradient.

    The exponential is taken of the logarithm, so both have the same rounding error, which cancels in a sum of q - p.
    """
    with torch.no_grad():
        shifted = logits - logits.amax(-1, keepdim=True)
        exponentials = shifted.exp()
        log_p = shifted.sub_(exponentials.sum(-1, keepdim=True).log_())
        return log_p, torch.exp(log_p, out=exponentials)  # in place: the loss is memory-bound


def negative_log_likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log-likelihood of ids int64 [n] in nats, 0 for IGNORED ids; logits [n, vocab]."""
    scored = ids != IGNORED
    chosen = logits.gather(-1, torch.where(scored, ids, 0)[:, None])[:, 0]
    return torch.where(scored, logits.logsumexp(-1) - chosen, 0)
