"""FLOPs of a training recipe, from Hugging Face configs alone."""

from __future__ import annotations

from typing import Any

from lit_prune.config import Distill
from lit_prune.distill.hidden_states import VECTORS, pairs_of, relations_of
from lit_prune.distill.trainable import targets_of
from lit_prune.models.flops import Products, Trainable, Value, attended, forward_flops, training_products
from lit_prune.models.shape import meta_model


def recipe_flops(distill: Distill, student: Any, teacher: Any = None, *, causal: bool = True) -> float:
    """Return the FLOPs per token of a training step of a student with this config.

    The backward pass counts only where the recipe trains weights, not below the lowest of them. The teacher's forward
    pass counts if the objective needs it, its training if it is fine-tuned alongside. Every token counts as scored.
    Effects of the runtime are ignored: a teacher cache saves forward passes, a ratio over micro-batches costs an extra
    backward pass.

    Raises:
        ConfigError: if a layer map or a LoRA target names a layer that does not exist.
    """
    scored = bool(distill.ce_weight or distill.kd_weight)
    ours = training_products(
        student, distill.seq_len, trainable_of(distill, student), causal=causal, head_gradient=scored
    )
    if teacher is None or not distill.needs_teacher:
        return ours.flops
    total = forward_flops(teacher, distill.seq_len, causal=causal)
    if distill.teacher_optimizer is not None:
        total += training_products(teacher, distill.seq_len, Trainable(), causal=causal).flops
    if distill.alpha:
        _add_compared(ours, distill, student, teacher, attended(distill.seq_len, causal=causal))
    return total + ours.flops


def trainable_of(distill: Distill, student: Any) -> Trainable:
    """Return which weights of a student with this config a recipe trains."""
    if distill.lora is None:
        return Trainable(last=distill.train_last_layers)
    return Trainable(rank=distill.lora.rank, targets=tuple(targets_of(meta_model(student), distill.lora)))


def _add_compared(ours: Products, distill: Distill, student: Any, teacher: Any, positions: float) -> None:
    """Add the products of L_is: the projection of the student's states, and the relations in both models."""
    depths = teacher.num_hidden_layers, student.num_hidden_layers
    if student.hidden_size != teacher.hidden_size:
        for pair in pairs_of(distill, *depths):
            ours.multiply(student.hidden_size * teacher.hidden_size, ours.values[pair.student].requires_grad, True)
    relations = relations_of(distill, *depths)
    theirs = _vectors_of(teacher) if relations else {}
    for pair in relations:
        vector = ours.values[pair.student]
        ours.multiply(vector.width * positions, vector.requires_grad, vector.requires_grad)
        ours.multiply(theirs[pair.teacher].width * positions)


def _vectors_of(config: Any) -> dict[tuple[str, int], Value]:
    """Return the queries, keys and values of all layers of a model."""
    found = training_products(config, 1, Trainable()).values
    return {state: value for state, value in found.items() if state[0] in VECTORS}
