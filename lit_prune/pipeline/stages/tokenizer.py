"""Train the tokenizer of a teacher that is pretrained here."""

from __future__ import annotations

from typing import Any

from lit_prune.config import Cell
from lit_prune.data import builtin
from lit_prune.data.bpe import train_tokenizer
from lit_prune.pipeline.stage import Context, Stage


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Train a byte-level BPE on the pretraining text."""
    recipe = cell.teacher.pretraining
    assert recipe is not None
    builtin.prepare(recipe.corpus.path, ctx.progress.count)
    ctx.say("training the tokenizer")
    tokenizer = train_tokenizer(recipe.corpus, recipe.vocab_size)
    tokenizer.save_pretrained(ctx.folder / "model")
    return {"vocab_size": len(tokenizer)}


STAGE = Stage("tokenizer", run)
