"""Validation of a training objective between two models."""

from __future__ import annotations

from typing import Any

from lit_prune.config import ConfigError, Distill
from lit_prune.distill.hidden_states import check_relation_heads, check_sublayers, pairs_of, relations_of
from lit_prune.losses.weighting import check_weights

NOTHING_COMPARED = (
    "name what to compare in distill.match_embedding, match_mlp_input, match_layer_output or match_attention"
)
_DEFAULT = Distill()


def check_objective(distill: Distill, teacher: Any, student: Any, num_layers: int) -> None:
    """Check that an objective can be computed between models with these configs; the student has `num_layers` layers.

    Raises:
        ConfigError: if it cannot, or a setting would have no effect.
    """
    pairs = pairs_of(distill, teacher.num_hidden_layers, num_layers)
    relations = relations_of(distill, teacher.num_hidden_layers, num_layers)
    check_sublayers([pair.teacher for pair in pairs + relations], teacher, "the teacher")
    check_sublayers([pair.student for pair in pairs + relations], student, "the student")
    if relations:
        check_relation_heads(distill, teacher, student)
    if distill.alpha and not pairs and not relations:
        raise ConfigError(f"distill.alpha: {NOTHING_COMPARED}")
    if (pairs or relations) and not distill.alpha:
        raise ConfigError(
            "distill.alpha: must be > 0 or dynamic with match_embedding, match_mlp_input, match_layer_output or "
            "match_attention, got 0"
        )
    check_weights(distill)
    if distill.projection == "per_pair" and not pairs:
        raise ConfigError(
            "distill.projection: must be shared without match_embedding, match_mlp_input and match_layer_output, "
            "got per_pair"
        )
    if distill.relation_heads != _DEFAULT.relation_heads and not relations:
        raise ConfigError(
            f"distill.relation_heads: must be unset without match_attention, got {distill.relation_heads}"
        )
    loading = distill.dynamic_loading
    if loading is not None and not loading.references and not distill.needs_teacher:
        raise ConfigError(
            "distill.dynamic_loading.references: must be given where kd_weight and alpha are 0, which leaves no teacher"
        )
    if distill.teacher_optimizer is not None and not distill.needs_teacher:
        raise ConfigError("distill.teacher_optimizer: must be null where kd_weight and alpha are 0, got an optimizer")
    if distill.teacher_optimizer is not None and distill.teacher_optimizer.algorithm != distill.optimizer.algorithm:
        raise ConfigError(
            f"distill.teacher_optimizer.algorithm: must be that of distill.optimizer, {distill.optimizer.algorithm}, "
            f"got {distill.teacher_optimizer.algorithm}"
        )
    if distill.top_k is not None and not 2 <= distill.top_k <= teacher.vocab_size:
        raise ConfigError(
            f"distill.top_k: must be 2 to {teacher.vocab_size}, the vocabulary, got {distill.top_k} (one token alone "
            "has probability 1 in both models)"
        )
