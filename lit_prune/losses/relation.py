"""L_att: the loss between self-attention relations of teacher and student (MiniLMv2, arXiv 2012.15828, section 3).

A relation of two tokens is the scaled dot product of their queries, of their keys, or of their values. It depends
neither on the width of a model nor on its number of heads, so no projection is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_prune.losses.logit import kl
from lit_prune.losses.probabilities import log_probabilities


def relation_loss(student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
    """Return KL(teacher || student) of each token's relations to itself and earlier tokens, float [batch, seq].

    The mean is taken over `num_heads` relation heads. The vectors are float [batch, seq, width]; `num_heads` must
    divide both widths, which may differ. The loss is >= 0, and 0 for equal relations. It is causal, whereas MiniLMv2
    relates all tokens. Memory: a few arrays [batch, heads, seq, seq].
    """
    return kl(_log_relations(teacher, num_heads), _log_relations(student, num_heads)).mean(1)


def _log_relations(vectors: Tensor, num_heads: int) -> Tensor:
    """Return the log-probabilities of the relations, [batch, heads, seq, seq]; later tokens have probability 0."""
    with torch.autocast(vectors.device.type, enabled=False):  # autocast would round the products to bfloat16
        heads = vectors.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        relations = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    later = torch.ones_like(relations[0, 0], dtype=torch.bool).triu(1)
    return log_probabilities(relations.masked_fill(later, torch.finfo(relations.dtype).min / 2))
