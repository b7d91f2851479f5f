"""Teacher correction: fine-tune the unpruned teacher on the text that its students will learn from.

A teacher guides worse on a text that it was not trained on (In Practice, section on teacher correction).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_prune.config import Cell, Distill, Execution, Finetuning
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.tokens import TokenSequences
from lit_prune.distill.callbacks import Spending
from lit_prune.distill.train import OnProgress, train
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.models import loading
from lit_prune.parallel.group import is_main
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pruning.masks import Masks, load_masks, save_masks

_SEQUENCES = 64


def inputs(cell: Cell, ctx: Context) -> None:
    """Compute the tokens and the teacher before fine-tuning."""
    artifacts.tokens(cell, ctx)
    artifacts.base_teacher(cell, ctx)


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Fine-tune the teacher of a cell."""
    recipe = cell.teacher.finetune
    assert recipe is not None
    tokens = artifacts.tokens(cell, ctx)
    model = loading.load_model(artifacts.base_teacher(cell, ctx)).to(ctx.device)
    if is_main():
        artifacts.tokenizer(cell, ctx).save_pretrained(ctx.folder / "model")
    on_progress = ctx.training("fine-tuning the teacher", recipe.max_steps)
    masks = load_masks(artifacts.base_teacher(cell, ctx))
    return correct(recipe, model, tokens, ctx.folder, ctx.execution, on_progress, ctx.spend, masks)


STAGE = Stage("correction", run, resumes=True, inputs=inputs)


def objective(recipe: Finetuning) -> Distill:
    """Return the training objective of a correction: cross-entropy alone."""
    return Distill(
        ce_weight=1.0, kd_weight=0.0, seq_len=recipe.seq_len, batch_size=recipe.batch_size, max_steps=recipe.max_steps,
        precision=recipe.precision, optimizer=recipe.optimizer,
    )  # fmt: skip


def correct(
    recipe: Finetuning, teacher: Any, tokens: Path, folder: Path, execution: Execution, on_progress: OnProgress,
    spend: Callable[[], None] = lambda: None, masks: Masks | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a teacher in place on the tokens in a folder, save it to `folder`/model; resume if interrupted.

    `spend` is called at every checkpoint. Masked weights stay zero.

    Returns the validation loss (nats/token) before and after, its relative reduction, and the tokens scored and
    trained on.
    """
    before, num_tokens = _validation_loss(teacher, tokens, recipe.seq_len)
    device = teacher.device
    train(
        teacher, None, objective(recipe), tokens, folder, seed=recipe.seed, execution=execution,
        on_progress=on_progress, callbacks=[Spending(spend)], masks=masks,
    )  # fmt: skip
    after, _ = _validation_loss(teacher.to(device), tokens, recipe.seq_len)
    if is_main():
        teacher.save_pretrained(folder / "model")
        save_masks(masks or {}, folder / "model")
    return {
        "lm_loss_before": before,
        "lm_loss": after,
        "reduction": 1 - after / before,
        "lm_loss_tokens": num_tokens,
        "tokens": recipe.max_steps * recipe.batch_size * recipe.seq_len,
    }


def _validation_loss(model: Any, tokens: Path, seq_len: int) -> tuple[float, int]:
    """Return nats per token over at most 64 validation sequences, and the number of scored tokens."""
    whole = TokenSequences(tokens, "validation", seq_len).num_whole
    data = CalibrationData(tokens, num_sequences=min(_SEQUENCES, whole), seq_len=seq_len, seed=0, split="validation")
    return language_model_loss(model, data.predict_dataloader())
