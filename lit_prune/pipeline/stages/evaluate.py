"""Measure a student: its losses, sizes and speed, and what its retraining took."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lit_prune.config import Cell, resolve_precision
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.teacher import Teacher
from lit_prune.evaluate.perplexity import language_model_loss, num_scored
from lit_prune.evaluate.throughput import compare_requests
from lit_prune.evaluate.validation import sizes_of, validation_data, validation_losses
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.costs import flops_of_token
from lit_prune.pipeline.stage import Context
from lit_prune.progress import counted
from lit_prune.pruning.shapes import teacher_config

Rows = list[dict[str, float]]
"""Validations of a student during its retraining, the last at its end."""


def measure(cell: Cell, ctx: Context, model: Any, rows: Rows) -> dict[str, Any]:
    """Return what is measured of a retrained student, whose validations so far are `rows`."""
    if rows and cell.distill.lora is None:  # the last one read the same sequences; before adapters were merged
        loss = _finite(rows[-1]["lm_loss"])
        data = validation_data(cell.evaluation, artifacts.tokens(cell, ctx))
        num_tokens = num_scored(data.predict_dataloader())
    else:
        loss, num_tokens = lm_loss(cell, ctx, model)
    result = {
        "lm_loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "num_tokens": num_tokens,
        **sizes_of(model),
    }
    if cell.evaluation.second_corpus is not None:
        result["second_lm_loss"], _ = lm_loss(artifacts.with_second_text(cell), ctx, model)
    if cell.evaluation.throughput is not None:
        count = ctx.counter("serving requests", cell.evaluation.throughput.num_repeats, "round")
        result |= compare_requests(model.config, teacher_config(cell), cell.evaluation.throughput, ctx.device, count)
    return result | _ends(rows)


def lm_loss(cell: Cell, ctx: Context, model: Any) -> tuple[float, int]:
    """Return nats per token on the validation sequences of a cell, and the tokens scored."""
    with _precision(cell, ctx):
        loss, num_tokens = language_model_loss(model.to(ctx.device), _batches(cell, ctx))
    return _finite(loss), num_tokens


def validation(cell: Cell, ctx: Context, teacher: Teacher | None) -> Callable[[Any, bool], dict[str, float]]:
    """Return a function that measures a student on the text and, at the ends of its retraining, against the teacher."""
    model = ctx.load(artifacts.teacher(cell, ctx)) if teacher is None else teacher.model

    def losses(student: Any, at_end: bool) -> dict[str, float]:
        with _precision(cell, ctx):
            return validation_losses(student, model if at_end else None, cell.distill, _batches(cell, ctx))

    return losses


def spent(cell: Cell, student: Any) -> dict[str, Any]:
    """Return what the retraining of a student with this config took: tokens, and FLOPs with the teacher's share."""
    tokens = cell.distill.max_steps * tokens_of_step(cell.distill)
    return {"tokens": tokens, "train_flops": tokens * flops_of_token(cell, student) if tokens else 0.0}


def _precision(cell: Cell, ctx: Context) -> torch.autocast:
    """Return the context in which models are evaluated."""
    enabled = resolve_precision(cell.evaluation.precision) == "bf16-mixed"
    return torch.autocast(ctx.device.type, torch.bfloat16, enabled=enabled)


def _batches(cell: Cell, ctx: Context) -> Iterable[Any]:
    """Yield the validation sequences in batches, counted as progress."""
    data = validation_data(cell.evaluation, artifacts.tokens(cell, ctx))
    count = ctx.counter("validating", len(data.chosen), "sequence")
    return counted(data.predict_dataloader(), lambda number: count(number * data.batch))


def _ends(rows: Rows) -> dict[str, float]:
    """The losses before and after the retraining, if there were validations."""
    if not rows:
        return {}
    before, after = rows[0], rows[-1]
    return {
        "lm_loss_before": before["lm_loss"],
        "kd_loss_before": before["kd_loss"],
        "kd_loss": after["kd_loss"],
    }


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}")
    return loss
