"""Retrain the student of a cell and measure it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from lit_prune.distill.callbacks import Checks, check_steps
from lit_prune.distill.teacher import Teacher
from lit_prune.distill.train import train
from lit_prune.distill.turns import Turn
from lit_prune.evaluate.memory import peak_memory
from lit_prune.models import loading
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.stages.evaluate import Rows, ends, spent
from lit_prune.store.store import CHECKS, Node

if TYPE_CHECKING:
    from lit_prune.pipeline.runner import Runner


class Retrainings:
    """Retrains students for a runner, whose teachers, tokens and progress it uses."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def measure(self, entry: Entry, student: str | None, tokens: Path, node: Node) -> dict[str, Any]:
        """Retrain the student in a folder, or a new one of random weights; finish the node with what is measured."""
        turn = Turn(node.spend, alone=self.runner.together == 1)
        try:
            result = self._measure(entry, student, tokens, node, turn)
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be full
                node.spend(round(turn.seconds, 1))
            raise
        seconds = round(turn.seconds, 1)
        self.runner.mirror.conclude(entry, result)
        # If cells take turns, the peak is that of all of them up to the end of this one.
        return node.finish(result, seconds=seconds, peak_memory=peak_memory() if self.runner.measurable else None)

    def _measure(self, entry: Entry, student: str | None, tokens: Path, node: Node, turn: Turn) -> dict[str, Any]:
        cell, runner = entry.cell, self.runner
        model = loading.load_model(student) if student else runner.students.new(cell)
        teacher = runner.teachings.of(cell) if cell.distill.steps else None
        checked = self._retrain(entry, model, teacher, tokens, node, turn)
        result = runner.evaluations.result(cell, model, tokens, checked) | ends(checked) | spent(cell, model.config)
        if cell.distill.teacher_optim is not None and teacher is not None:
            result["teacher_lm_loss"], _ = runner.evaluations.lm_loss(cell, teacher.model, tokens)
        return result

    def _retrain(self, entry: Entry, model: Any, teacher: Teacher | None, tokens: Path, node: Node, turn: Turn) -> Rows:
        """Train the student for the steps of its recipe; return its checks, none if the cell has none."""
        cell, runner, checks = entry.cell, self.runner, None
        if not cell.distill.steps:
            model.to(runner.device)
            return [runner.evaluations.validate(cell, tokens, teacher)(model, True)] if cell.evaluation.checks else []
        callbacks: list[L.Callback] = [turn]
        if cell.evaluation.checks:
            steps = check_steps(cell.distill.steps, cell.evaluation.checks)
            checks = Checks(node.folder / CHECKS, steps, runner.evaluations.validate(cell, tokens, teacher))
            callbacks.append(checks)
        with runner.mirror.logger(entry, node.folder) as loggers:
            train(
                model, teacher, cell.distill, tokens, node.folder, seed=cell.seed,
                execution=runner.execution, tell=runner.teller_of_cell(entry), loggers=loggers, callbacks=callbacks,
            )  # fmt: skip
        model.save_pretrained(node.folder / "model")
        runner.tokenizer(cell).save_pretrained(node.folder / "model")
        return checks.rows if checks else []
