"""Run a stage on several devices: one process each, of which rank 0 is that of the pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from lit_prune import cpu
from lit_prune.config import Cell, Execution
from lit_prune.models.silence import quiet
from lit_prune.parallel.processes import together
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.stage import Context, Stage, Untracked
from lit_prune.pipeline.stages.teacher_outputs import TeacherOutputs
from lit_prune.pipeline.work import attention_shape
from lit_prune.progress import Silent
from lit_prune.store import Node, Store


def run_on_all(stage: Stage, cell: Cell, ctx: Context) -> dict[str, Any]:
    """Run a stage on all devices of the run, if it can use several; return the result of rank 0.

    Raises:
        RankFailed: if another rank fails.
    """
    if stage.inputs is None or ctx.execution.devices == 1:
        return stage.run(cell, ctx)
    assert ctx.node is not None
    stage.inputs(cell, ctx)
    ctx.env["devices"] = ctx.execution.devices
    arguments = stage, cell, ctx.entry, ctx.store.root, ctx.node.folder, ctx.execution, bool(cpu.applied())
    return together(
        lambda: stage.run(cell, ctx), _follow, arguments, world=ctx.execution.devices, gpu=ctx.device.type == "cuda"
    )


def _follow(
    stage: Stage, cell: Cell, entry: Entry | None, root: Path, folder: Path, execution: Execution, tuned: bool
) -> None:
    """Run a stage as a rank above 0, which finds all inputs in the store and writes nothing."""
    quiet()
    store = Store(root)
    if tuned:
        cpu.choose(dataclasses.replace(execution, threads=torch.get_num_threads()))
        cpu.prepare(attention_shape([cell]))
    teachers = TeacherOutputs(store, execution)
    stage.run(cell, Context(store, execution, Silent(), Untracked(), {}, teachers, entry=entry, node=Node(folder)))
