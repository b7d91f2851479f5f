"""Tokenise the text of a cell with its teacher's tokenizer."""

from __future__ import annotations

from typing import Any

from lit_prune.config import Cell
from lit_prune.data import builtin
from lit_prune.data.tokens import write_tokens
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pruning.shapes import teacher_config


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Write the tokens of each split; record the contents of a built-in text in env.json."""
    builtin.prepare(cell.corpus.path, ctx.progress.count)
    ctx.env["corpus"] = builtin.about(cell.corpus.path)
    ctx.say("tokenising")
    tokenizer = artifacts.tokenizer(cell, ctx)
    count = ctx.counter("tokenising", None, "train tokens")
    return write_tokens(cell.corpus, tokenizer, ctx.folder, count, vocab_size=teacher_config(cell).vocab_size)


STAGE = Stage("tokens", run)
