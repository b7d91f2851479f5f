"""Train a teacher from random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_prune.config import Cell, Distill, Execution, Pretraining
from lit_prune.data.tokens import tokens_are_whole, write_tokens
from lit_prune.distill.callbacks import Spending
from lit_prune.distill.sharding import loading_device
from lit_prune.distill.train import OnProgress, train
from lit_prune.evaluate.teacher_quality import heldout_loss
from lit_prune.models.llama import config_of, new_model
from lit_prune.parallel.group import is_main
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.stage import Context, Stage


def inputs(cell: Cell, ctx: Context) -> None:
    """Compute the tokenizer and the tokens, which lie in the folder of the stage."""
    assert cell.teacher.pretraining is not None
    tokenise(cell.teacher.pretraining, artifacts.tokenizer(cell, ctx), ctx.folder)


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Pretrain the teacher of a cell."""
    recipe = cell.teacher.pretraining
    assert recipe is not None
    on_progress = ctx.training("pretraining the teacher", recipe.max_steps)
    tokenizer = artifacts.tokenizer(cell, ctx)
    return pretrain(recipe, tokenizer, ctx.folder, ctx.execution, on_progress, ctx.spend)


STAGE = Stage("teacher", run, resumes=True, inputs=inputs)


def pretrain(
    recipe: Pretraining,
    tokenizer: Any,
    folder: Path,
    execution: Execution,
    on_progress: OnProgress,
    spend: Callable[[], None],
) -> dict[str, Any]:
    """Train a teacher and save it to `folder`/model, in Hugging Face layout; resume if interrupted.

    `spend` is called at every checkpoint.

    Returns validation loss (nats/token), tokens trained on, and the corpus's fingerprint.
    """
    tokens, target = tokenise(recipe, tokenizer, folder), folder / "model"
    if is_main():
        config_of(recipe, tokenizer.eos_token_id).save_pretrained(target)
        tokenizer.save_pretrained(target)
    with torch.device(loading_device(execution)):
        model = new_model(recipe, tokenizer.eos_token_id)
    train(
        model, None, objective(recipe), tokens, folder, seed=recipe.seed, execution=execution, on_progress=on_progress,
        callbacks=[Spending(spend)],
    )  # fmt: skip
    model.half()
    if is_main():
        model.save_pretrained(target)
    loss, num_tokens = heldout_loss(model.float(), tokens, recipe.seq_len)
    return {
        "lm_loss": loss,
        "lm_loss_tokens": num_tokens,
        "tokens": recipe.max_steps * recipe.batch_size * recipe.seq_len,
        "distinct_tokens": json.loads((tokens / "tokens.json").read_text())["num_tokens"]["train"],
        "parameters": model.num_parameters(),
        "corpus": recipe.corpus.fingerprint,
    }


def objective(recipe: Pretraining) -> Distill:
    """Return the training objective of pretraining: cross-entropy alone."""
    return Distill(
        ce_weight=1.0, kd_weight=0.0, seq_len=recipe.seq_len, batch_size=recipe.batch_size, max_steps=recipe.max_steps,
        optimizer=recipe.optimizer,
    )  # fmt: skip


def tokenise(recipe: Pretraining, tokenizer: Any, folder: Path) -> Path:
    """Return the folder of tokens, `folder`/tokens; write them if they are missing or incomplete."""
    tokens = folder / "tokens"
    if not tokens_are_whole(tokens):
        write_tokens(recipe.corpus, tokenizer, tokens, vocab_size=recipe.vocab_size)
    return tokens
