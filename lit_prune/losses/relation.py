"""L_att: how the tokens of a sequence relate, in teacher and student (MiniLMv2, arXiv 2012.15828, section 3).

A relation of two tokens is the scaled dot product of their queries, of their keys, or of their values. It knows
neither the width of a model nor its number of heads, so that no projection is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_prune.losses.logit import kl
from lit_prune.losses.probabilities import log_probabilities


def relation_loss(student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
    """KL(teacher || student) of each token's relations to itself and the tokens before it, mean over `num_heads`
    relation heads; the vectors are float [batch, seq, width] of any two widths that the heads divide.

    Returns float [batch, seq], >= 0, 0 where they agree (causal here, where MiniLMv2 has all tokens). It holds
    some arrays of [batch, heads, seq, seq] numbers.
    """
    return kl(_log_relations(teacher, num_heads), _log_relations(student, num_heads)).mean(1)


def _log_relations(vectors: Tensor, num_heads: int) -> Tensor:
    """Log-probabilities [batch, heads, seq, seq] of the relations; those to later tokens are all but impossible."""
    with torch.autocast(vectors.device.type, enabled=False):  # it would make the products bfloat16 again
        heads = vectors.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        relations = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    later = torch.ones_like(relations[0, 0], dtype=torch.bool).triu(1)
    return log_probabilities(relations.masked_fill(later, torch.finfo(relations.dtype).min / 2))
