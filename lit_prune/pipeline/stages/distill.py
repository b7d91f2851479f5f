"""Retrain the student of a cell and measure it."""

from __future__ import annotations

from typing import Any

import lightning as L

from lit_prune.config import Cell
from lit_prune.data.builtin import package_versions
from lit_prune.distill.callbacks import Checks, Spending, check_steps
from lit_prune.distill.sharding import loading_device
from lit_prune.distill.teacher import Teacher
from lit_prune.distill.train import train
from lit_prune.evaluate.memory import peak_memory
from lit_prune.models import loading
from lit_prune.parallel.group import agree, is_main
from lit_prune.pipeline import artifacts, identical
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pipeline.stages import evaluate, prune
from lit_prune.pipeline.stages.evaluate import Validations
from lit_prune.pruning.masks import Masks, check_zero, load_masks, save_masks, sparsity_of
from lit_prune.store.environment import environment
from lit_prune.store.store import CHECKS, IDENTICAL, PRUNING


def inputs(cell: Cell, ctx: Context) -> None:
    """Compute the student, the model that it imitates, and the tokens of its texts."""
    _student(cell, ctx)
    artifacts.imitated(cell, ctx)
    artifacts.tokenizer(cell, ctx)
    artifacts.tokens(cell, ctx)
    if cell.evaluation.second_corpus is not None:
        artifacts.tokens(artifacts.with_second_text(cell), ctx)


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Retrain the student, pruned or randomly initialised, and return its metrics.

    Those of an identical student that is not retrained either are taken over from its cell.
    """
    assert ctx.entry is not None
    student = _student(cell, ctx)
    about = identical.measurement_of(cell, student) if is_main() else None
    other = agree(identical.find(ctx.store, about))
    result = {} if other is not None else _measured(cell, ctx, student)
    if not is_main():
        return result
    if other is not None:
        result, ctx.env[IDENTICAL] = identical.take_over(other, ctx.folder)
    else:
        identical.note(ctx.store, about, ctx.folder.name)
    if student is not None and cell.prune.init_from is None:
        ctx.env[PRUNING] = ctx.store.node(cell, "student").env.get(PRUNING)
    ctx.env["peak_memory"] = peak_memory() if ctx.measurable and other is None else None
    for text in filter(None, (cell.evaluation.second_corpus, cell.corpus)):
        ctx.env["versions"] = package_versions(text.path) | ctx.env.get("versions", environment()["versions"])
    ctx.tracker.conclude(ctx.entry, result)
    return result


STAGE = Stage("cell", run, resumes=True, inputs=inputs)


def _student(cell: Cell, ctx: Context) -> str | None:
    """Return the folder of the student before retraining; None if its weights are random."""
    return None if cell.prune.init == "random" else artifacts.student(cell, ctx)


def _measured(cell: Cell, ctx: Context, student: str | None) -> dict[str, Any]:
    device = loading_device(ctx.execution) if cell.distill.max_steps else "cpu"
    model = loading.load_model(student, device) if student else prune.untrained(cell, device)
    masks = load_masks(student) if student else {}
    if device == "cpu":
        check_zero(model, masks, str(student))
    teacher = ctx.teachers.of(cell, ctx)
    ctx.env["teacher_outputs"] = None if teacher is None else teacher.origin
    validations = _retrain(cell, ctx, model, teacher, masks)
    result = evaluate.measure(cell, ctx, model, validations, masks) | evaluate.spent(cell, model.config)
    if masks:
        result |= sparsity_of(model, masks)
    if cell.distill.teacher_optimizer is not None and teacher is not None:
        result["teacher_lm_loss"] = evaluate.sequence_losses(cell, ctx, teacher.model).mean
    return result


def _retrain(cell: Cell, ctx: Context, model: Any, teacher: Teacher | None, masks: Masks) -> Validations:
    """Train the student for the steps of its recipe; return its validations, none if the cell has none.

    Masked weights stay zero.
    """
    assert ctx.entry is not None
    if not cell.distill.max_steps:
        if not cell.evaluation.num_validations:
            return Validations()
        found = evaluate.validation(cell, ctx, teacher)(model.to(ctx.device), True)
        return Validations([{name: loss.mean for name, loss in found.items()}], found, found)
    callbacks: list[L.Callback] = [Spending(ctx.spend)]
    checks = None
    if cell.evaluation.num_validations:
        steps = check_steps(cell.distill.max_steps, cell.evaluation.num_validations)
        checks = Checks(ctx.folder / CHECKS, steps, evaluate.validation(cell, ctx, teacher))
        callbacks.append(checks)
    with ctx.tracker.logger(ctx.entry, ctx.folder) as loggers:
        train(
            model, teacher, cell.distill, artifacts.tokens(cell, ctx), ctx.folder, seed=cell.seed,
            execution=ctx.execution, on_progress=ctx.training(ctx.doing, cell.distill.max_steps), loggers=loggers,
            callbacks=callbacks, masks=masks,
        )  # fmt: skip
    check_zero(model, masks, str(ctx.folder))
    if is_main():
        model.save_pretrained(ctx.folder / "model")
        save_masks(masks, ctx.folder / "model")
        artifacts.tokenizer(cell, ctx).save_pretrained(ctx.folder / "model")
    if checks is None:
        return Validations()
    return Validations(checks.rows, checks.ends.get(0, {}), checks.ends.get(cell.distill.max_steps, {}))
