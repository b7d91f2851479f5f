"""Estimate the work of a stage, to which its time is proportional, from configs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lit_prune.config import EVIDENCE, Cell, Distill, Finetuning, Pretraining
from lit_prune.cpu.attention import AttentionShape
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.flops import recipe_flops
from lit_prune.models.llama import config_of
from lit_prune.models.model_family import head_dim_of
from lit_prune.models.shape import num_parameters, widths_of
from lit_prune.pruning.method_work import Work
from lit_prune.pruning.shapes import config_of_student, imitated_config, pruned_config, teacher_config

OWN = "method_flops"
"""Key in a student's env.json: FLOPs of the method itself; and of the seconds per FLOP of such work."""
CACHING = "caching"
"""Key in a cell's env.json: seconds and work of the teacher outputs that it cached for others."""


def flops_of_token(cell: Cell, student: Any = None) -> float:
    """Return the FLOPs per token of a cell's retraining, with those of the model it imitates, also if that trains too.

    Fine-tuning the teacher beforehand is not included. `student` is the student's config, inferred if not given.
    """
    teacher = imitated_config(cell) if cell.distill.needs_teacher else None
    return recipe_flops(cell.distill, student or config_of_student(cell), teacher)


def method_flops(cell: Cell) -> float:
    """Return the FLOPs of a cell's pruning method beside collecting statistics of the model and cutting it."""
    method = cell.prune
    if method.plan_path is not None or method.init_from is not None or method.init == "random":
        return 0.0
    return method.own_flops(Work(pruned_config(cell), cell.calibration))


def recorded(stage: str, cell: Cell) -> dict[str, float]:
    """Return the work of a stage as env.json records it beside the seconds: none of a stage without an estimate."""
    if stage not in WORK:
        return {}
    own = {OWN: flops} if stage == "student" and (flops := method_flops(cell)) else {}
    return {"work": WORK[stage](cell), **own}


def attention_shape(cells: Iterable[Cell]) -> AttentionShape | None:
    """Return the shape of the teacher's attention in the longest retraining of cells, or in the evaluation if no cell
    is retrained; None without cells."""
    longest = max(cells, key=lambda cell: cell.distill.max_steps * tokens_of_step(cell.distill), default=None)
    if longest is None:
        return None
    distill, evaluation, config = longest.distill, longest.evaluation, teacher_config(longest)
    batch, seq_len = distill.batch_size, distill.seq_len
    if not distill.max_steps:
        batch, seq_len = evaluation.num_sequences, evaluation.seq_len
    whole = widths_of(config)
    return AttentionShape(batch, whole.num_attention_heads, whole.num_key_value_heads, seq_len, head_dim_of(config))


def of_caching(cell: Cell, num_sequences: int) -> float:
    """Return the work of caching the teacher outputs of a cell for `num_sequences` sequences."""
    return float(num_parameters(teacher_config(cell)) * num_sequences * cell.distill.seq_len)


def _pretraining(cell: Cell) -> float:
    recipe = cell.teacher.pretraining
    assert recipe is not None
    return _flops(recipe, config_of(recipe))


def _finetuning(cell: Cell) -> float:
    recipe = cell.teacher.finetune
    assert recipe is not None
    return _flops(recipe, teacher_config(cell))


def _flops(recipe: Pretraining | Finetuning, config: Any) -> float:
    """Return the FLOPs of training a model with cross-entropy alone."""
    tokens = recipe.max_steps * recipe.batch_size * recipe.seq_len
    return tokens * recipe_flops(Distill(ce_weight=1.0, kd_weight=0.0, seq_len=recipe.seq_len), config)


def _calibration(cell: Cell) -> float:
    tokens = cell.calibration.num_sequences * cell.calibration.seq_len
    return float(num_parameters(pruned_config(cell)) * tokens)


WORK: dict[str, Callable[[Cell], float]] = {
    "tokenizer": lambda cell: 1.0,
    "tokens": lambda cell: 1.0,
    "teacher": _pretraining,
    "correction": _finetuning,
    **dict.fromkeys(EVIDENCE, _calibration),
    "student": lambda cell: float(num_parameters(pruned_config(cell))),
}
"""Stage -> work: FLOPs of a training, parameters times tokens of a pass, parameters of a pruned model, and 1 for a
text, whose size is unknown until it is read. The FLOPs of a cell are in its result, those of a method are apart."""
