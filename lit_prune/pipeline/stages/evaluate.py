"""What is measured of a student: its losses, sizes and speed, and what its retraining took."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.config import Cell
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.teacher import Teacher
from lit_prune.evaluate.perplexity import language_model_loss, num_scored
from lit_prune.evaluate.throughput import compare_requests
from lit_prune.evaluate.validation import sizes_of, validation_data, validation_losses
from lit_prune.pipeline.validate import second_of
from lit_prune.progress import counted
from lit_prune.pruning.shapes import flops_of_token, teacher_config

if TYPE_CHECKING:
    from lit_prune.pipeline.runner import Runner

Rows = list[dict[str, float]]
"""Checks of a student on its way, the last at its end."""


class Evaluations:
    """Measures students for a runner, whose teacher, tokens and progress it uses."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def validate(self, cell: Cell, tokens: Path, teacher: Teacher | None) -> Callable[[Any, bool], dict[str, float]]:
        """A function that measures a student on the text, and at the ends of its run against the teacher."""
        model = self.runner.load(self.runner.teacher(cell)) if teacher is None else teacher.model

        def losses(student: Any, at_end: bool) -> dict[str, float]:
            return validation_losses(student, model if at_end else None, cell.distill, self._batches(cell, tokens))

        return losses

    def result(self, cell: Cell, model: Any, tokens: Path, checked: Rows) -> dict[str, Any]:
        if checked and cell.distill.lora is None:  # the last check read the very sequences; before adapters were merged
            loss = _finite(checked[-1]["lm_loss"])
            num_tokens = num_scored(validation_data(cell.evaluation, tokens).predict_dataloader())
        else:
            loss, num_tokens = self.lm_loss(cell, model, tokens)
        result = {
            "lm_loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "num_tokens": num_tokens,
            **sizes_of(model),
        }
        if cell.evaluation.second is not None:
            other = second_of(cell)
            result["second_lm_loss"], _ = self.lm_loss(other, model, self.runner.tokens(other))
        if cell.evaluation.speed is not None:
            result |= self._speed(cell, model.config)
        return result

    def _speed(self, cell: Cell, student: Any) -> dict[str, Any]:
        """How fast a student with this config serves requests, and in how much memory, beside the cell's teacher."""
        speed = cell.evaluation.speed
        assert speed is not None
        tell = self.runner.counter("serving requests", speed.repeats, "round")
        return compare_requests(student, teacher_config(cell), speed, self.runner.device, tell)

    def _batches(self, cell: Cell, tokens: Path) -> Iterable[Any]:
        """The validation sequences in batches, counted as progress while they are consumed."""
        data = validation_data(cell.evaluation, tokens)
        tell = self.runner.counter("validating", len(data.chosen), "sequence")
        return counted(data.predict_dataloader(), lambda number: tell(number * data.batch))

    def lm_loss(self, cell: Cell, model: Any, tokens: Path) -> tuple[float, int]:
        batches = self._batches(cell, tokens)
        loss, num_tokens = language_model_loss(model.to(self.runner.device), batches)
        return _finite(loss), num_tokens


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}")
    return loss


def ends(checked: Rows) -> dict[str, float]:
    """The losses before and after the retraining, where there were checks."""
    if not checked:
        return {}
    before, after = checked[0], checked[-1]
    return {
        "lm_loss_before": before["lm_loss"],
        "kd_loss_before": before["kd_loss"],
        "kd_loss": after["kd_loss"],
    }


def spent(cell: Cell, student: Any) -> dict[str, Any]:
    """What the retraining of a student with this config took: `tokens`, and `train_flops` with the teacher's share."""
    tokens = cell.distill.steps * tokens_of_step(cell.distill)
    return {"tokens": tokens, "train_flops": tokens * flops_of_token(cell, student) if tokens else 0.0}
