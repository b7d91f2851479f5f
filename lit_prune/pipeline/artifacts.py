"""Locate the models and texts of a cell: given ones at their own path, computed ones in the folder of their stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lit_prune.config import Cell
from lit_prune.config.overrides import parent_of
from lit_prune.models import loading
from lit_prune.pipeline.stage import Context


def base_teacher(cell: Cell, ctx: Context) -> str:
    """Return the folder of the teacher before fine-tuning; pretrain it if the cell gives a recipe."""
    if cell.teacher.model is not None:
        return loading.locate(cell.teacher.model, cell.teacher.fingerprint)
    return str(ctx.get("teacher", cell).folder / "model")


def teacher(cell: Cell, ctx: Context) -> str:
    """Return the folder of the teacher, fine-tuned on the cell's text if the cell says so."""
    if cell.teacher.finetune is None:
        return base_teacher(cell, ctx)
    return str(ctx.get("correction", cell).folder / "model")


def imitated(cell: Cell, ctx: Context) -> str:
    """Return the folder of the model that the student imitates: the teacher, or the parent's student.

    Raises:
        RuntimeError: if the parent has failed.
    """
    return to_prune(cell, ctx) if cell.distill.imitate == "parent" else teacher(cell, ctx)


def tokenizer(cell: Cell, ctx: Context) -> Any:
    """Return the teacher's tokenizer, which exists before a teacher is pretrained."""
    if cell.teacher.model is not None:
        return loading.load_tokenizer(base_teacher(cell, ctx))
    pretrained = ctx.store.node(cell, "teacher")
    node = ctx.get("tokenizer", cell) if pretrained.verified is None else pretrained
    return loading.load_tokenizer(str(node.folder / "model"))


def tokens(cell: Cell, ctx: Context) -> Path:
    """Return the folder of the cell's text in the teacher's tokens."""
    return ctx.get("tokens", cell).folder


def student(cell: Cell, ctx: Context) -> str:
    """Return the folder of the student before retraining: pruned, given, or the whole model if nothing is cut."""
    if cell.prune.init_from is not None:
        return loading.locate(cell.prune.init_from, cell.prune.fingerprint, field="prune.init_from")
    node = ctx.get("student", cell)
    return to_prune(cell, ctx) if (node.result or {}).get("whole") else str(node.folder / "model")


def to_prune(cell: Cell, ctx: Context) -> str:
    """Return the folder of the model that is pruned: the teacher, or the student of the cell's parent.

    Raises:
        RuntimeError: if the parent has failed.
    """
    parent = parent_of(cell)
    if parent is None:
        return teacher(cell, ctx)
    if not parent.distill.max_steps:
        return student(parent, ctx)
    node = ctx.store.node(parent, "cell")
    if node.verified is None:
        with ctx.store.claim(parent, "cell", wait=True):  # waits for another process that computes it
            pass
    if node.result is None:
        raise RuntimeError(f"its parent {node.key} is not done ({node.error or 'stopped'})")
    return str(node.folder / "model")


def with_second_text(cell: Cell) -> Cell:
    """Return the cell with its second corpus in place of its corpus."""
    assert cell.evaluation.second_corpus is not None
    return dataclasses.replace(cell, corpus=cell.evaluation.second_corpus)
