"""Rules of a training objective between two models."""

from __future__ import annotations

from typing import Any

from lit_prune.config import ConfigError, Distill
from lit_prune.distill.hidden_states import check_relation_heads, pairs_of, relations_of
from lit_prune.distill.module import NOTHING_COMPARED
from lit_prune.losses.weighting import check_weights

_DEFAULT = Distill()


def check_objective(distill: Distill, teacher: Any, student: Any, num_layers: int) -> None:
    """See that an objective can be computed between models with these configs, the student's of `num_layers` layers.

    Raises:
        ConfigError: it cannot, or it names what would have no effect.
    """
    pairs = pairs_of(distill, teacher.num_hidden_layers, num_layers)
    relations = relations_of(distill, teacher.num_hidden_layers, num_layers)
    if relations:
        check_relation_heads(distill, teacher, student)
    if distill.alpha and not pairs and not relations:
        raise ConfigError(f"distill.alpha: {NOTHING_COMPARED}")
    if (pairs or relations) and not distill.alpha:
        raise ConfigError(
            "distill.alpha: 0, so that match_embedding, match_mlp_input, match_layer_output and match_attention "
            "would have no effect"
        )
    check_weights(distill)
    if distill.projection == "per_pair" and not pairs:
        raise ConfigError(
            "distill.projection: per_pair is for match_embedding, match_mlp_input and "
            "match_layer_output, and none is given"
        )
    if distill.relation_heads != _DEFAULT.relation_heads and not relations:
        raise ConfigError("distill.relation_heads: is for match_attention, and none is given")
    if distill.teacher_optimizer is not None and not distill.needs_teacher:
        raise ConfigError(
            "distill.teacher_optimizer: kd_weight and alpha are 0, so nothing is learned from the teacher"
        )
    if distill.top_k is not None and not 2 <= distill.top_k <= teacher.vocab_size:
        raise ConfigError(
            f"distill.top_k: {distill.top_k} asked for; it is 2 to {teacher.vocab_size}, all of the vocabulary (of one "
            "token alone both are certain, and nothing would be learned)"
        )
