"""Measure a student: losses, sizes, speed and the cost of its retraining."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lit_prune.config import BasinTest, Cell, TaskTest, resolve_precision
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.teacher import Teacher
from lit_prune.evaluate import perplexity
from lit_prune.evaluate.accuracy import accuracies
from lit_prune.evaluate.basin import measure_basin
from lit_prune.evaluate.throughput import compare_requests
from lit_prune.evaluate.validation import sizes_of, validation_data, validation_losses
from lit_prune.losses.sequence_losses import SequenceLosses
from lit_prune.parallel.group import is_main
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.stage import Context
from lit_prune.pipeline.work import flops_of_token
from lit_prune.progress import counted
from lit_prune.pruning.masks import Masks
from lit_prune.pruning.shapes import teacher_config
from lit_prune.store.store import SEQUENCES

Losses = Mapping[str, SequenceLosses]
"""Metric -> losses by validation sequence."""


@dataclass(frozen=True)
class Validations:
    """Validations of a student during its retraining."""

    rows: Sequence[Mapping[str, float]] = ()
    """Mean losses of each validation, the last at the end; empty if the cell has none."""
    before: Losses = field(default_factory=dict)
    """Losses by sequence, before the retraining."""
    after: Losses = field(default_factory=dict)
    """Losses by sequence, after the retraining."""


def measure(cell: Cell, ctx: Context, model: Any, validations: Validations, masks: Masks) -> dict[str, Any]:
    """Return the metrics of a retrained student; write its losses by validation sequence to the folder.

    All ranks share the losses and the tasks. Rank 0 measures the speed, which the result of the others lacks.
    """
    # The last validation read the same sequences, before adapters were merged.
    known = validations.after if cell.distill.lora is None else {}
    found = known.get("lm_loss") or sequence_losses(cell, ctx, model)
    losses = {f"{name}_before": loss for name, loss in validations.before.items()}
    losses |= {**validations.after, "lm_loss": found}
    loss = found.mean
    _finite(loss)
    result = {
        "lm_loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "num_tokens": found.num_tokens,
        **sizes_of(model),
    }
    if cell.evaluation.second_corpus is not None:
        losses["second_lm_loss"] = sequence_losses(artifacts.with_second_text(cell), ctx, model)
        result["second_lm_loss"] = losses["second_lm_loss"].mean
    test = cell.evaluation.basin
    basin = {} if test is None else _basin(cell, ctx, model, masks, test)
    tasks = {} if cell.evaluation.tasks is None else _accuracies(cell, ctx, model, cell.evaluation.tasks)
    if not is_main():
        return result
    _write(losses, ctx.folder)
    if cell.evaluation.throughput is not None:
        count = ctx.counter("serving requests", cell.evaluation.throughput.num_repeats, "round")
        result |= compare_requests(model.config, teacher_config(cell), cell.evaluation.throughput, ctx.device, count)
    return result | tasks | basin | _ends(validations.rows)


def _accuracies(cell: Cell, ctx: Context, model: Any, tasks: TaskTest) -> dict[str, float]:
    """Return a student's accuracy in tasks."""
    count, tokenizer = ctx.counter("answering tasks", 100, "%"), artifacts.tokenizer(cell, ctx)
    with _precision(cell, ctx):
        return accuracies(model.to(ctx.device), tokenizer, tasks, lambda share: count(round(100 * share)))


def _basin(cell: Cell, ctx: Context, model: Any, masks: Masks, test: BasinTest) -> dict[str, float]:
    """Return the volume of the basin around a student."""
    evaluation = dataclasses.replace(cell.evaluation, num_sequences=test.num_sequences)
    data = validation_data(evaluation, artifacts.tokens(cell, ctx))
    count = ctx.counter("measuring the basin", test.num_directions, "direction")
    with _precision(cell, ctx):
        return measure_basin(model.to(ctx.device), masks, data.predict_dataloader(), test, count)


def sequence_losses(cell: Cell, ctx: Context, model: Any) -> SequenceLosses:
    """Return the nats of each validation sequence of a cell."""
    with _precision(cell, ctx):
        found = perplexity.sequence_losses(model.to(ctx.device), _batches(cell, ctx))
    _finite(found.mean)
    return found


def validation(cell: Cell, ctx: Context, teacher: Teacher | None) -> Callable[[Any, bool], Losses]:
    """Return a function that validates a student on the text and, before and after retraining, against the teacher."""
    model = ctx.load(artifacts.imitated(cell, ctx)) if teacher is None else teacher.model

    def losses(student: Any, at_end: bool) -> Losses:
        with _precision(cell, ctx):
            return validation_losses(student, model if at_end else None, cell.distill, _batches(cell, ctx))

    return losses


def spent(cell: Cell, student: Any) -> dict[str, Any]:
    """Return the tokens and the FLOPs, including the teacher's, of retraining a student with this config."""
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
    return counted(data.predict_dataloader(), lambda number: count(number * data.batch_size))


def _write(losses: Losses, folder: Path) -> None:
    """Write the losses of each sequence."""
    frames = [
        pd.DataFrame({"metric": name, "sequence": range(len(loss.sums)), "loss": loss.sums, "tokens": loss.tokens})
        for name, loss in losses.items()
    ]
    pd.concat(frames).to_parquet(folder / SEQUENCES, index=False)


def _ends(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the losses before and after the retraining, if there were validations."""
    if not rows:
        return {}
    before, after = rows[0], rows[-1]
    return {
        "lm_loss_before": before["lm_loss"],
        "kd_loss_before": before["kd_loss"],
        "kd_loss": after["kd_loss"],
    }


def _finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}")
