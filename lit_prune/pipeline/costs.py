"""What a cell costs."""

from __future__ import annotations

from typing import Any

from lit_prune.config import Cell
from lit_prune.distill.flops import recipe_flops
from lit_prune.pruning.shapes import config_of_student, teacher_config


def flops_of_token(cell: Cell, student: Any = None) -> float:
    """FLOPs a token of a cell's retraining, the teacher's forward pass and its training alongside included.

    The correction of a teacher before it is not charged. `student` is the student's config, predicted if not given.
    """
    teacher = teacher_config(cell) if cell.distill.needs_teacher else None
    return recipe_flops(cell.distill, student or config_of_student(cell), teacher)
