"""The teacher of a retraining: in memory, shared by the cells in turns, or read from a cache."""

from __future__ import annotations

import shutil
from typing import Any

from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill.cache import CachedTeacher, bytes_of, clear, read_cache, write_cache
from lit_prune.distill.teacher import FrozenTeacher
from lit_prune.distill.train import micro_batches
from lit_prune.models.loading import load_model
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.cohort import Cohort
from lit_prune.pipeline.stage import Context
from lit_prune.store import Node, Store
from lit_prune.store.address import canonical


class Teachings:
    """Finds or makes them."""

    def __init__(self, store: Store, execution: Execution) -> None:
        self.store, self.execution = store, execution
        self._teaching: FrozenTeacher | None = None
        self._cached = False
        self._temporary: list[dict[str, Any]] = []

    def begin(self, cohort: Cohort) -> None:
        """Teach other cells, for whose data nothing shown so far is of use.

        Where memory cuts the cells that share a teacher into several cohorts, what it shows is kept on disk.
        """
        self._teaching = None
        self._cached = cohort.cut or self.execution.cache_teacher

    def of(self, cell: Cell, ctx: Context) -> FrozenTeacher | CachedTeacher | None:
        """The teacher of a cell's retraining; None where its objective needs none."""
        distill = cell.distill
        if not distill.needs_teacher:
            return None
        if distill.teacher_optimizer is not None:  # it is trained too, for this cell alone
            return FrozenTeacher(load_model(artifacts.teacher(cell, ctx)))
        if self._cached and not distill.alpha:
            return self._from_cache(cell, ctx)
        if self._teaching is None:
            self._teaching = FrozenTeacher(ctx.load(artifacts.teacher(cell, ctx)))
        return self._teaching

    def end(self) -> None:
        """Remove the caches that were made only because memory cut a cohort."""
        for about in self._temporary:
            self.store.discard("teaching", about)
        self._temporary = []

    def _from_cache(self, cell: Cell, ctx: Context) -> CachedTeacher:
        """What the teacher shows of all that a cell reads, made where it is missing or damaged."""
        distill = cell.distill
        vocab_size = ctx.load(artifacts.teacher(cell, ctx)).config.vocab_size
        about = {
            "teacher": canonical(cell.teacher), "corpus": canonical(cell.corpus), "block": distill.seq_len,
            "batch": distill.batch_size, "steps": distill.max_steps, "seed": cell.seed, "precision": distill.precision,
            "top_k": distill.top_k, "micro_batches": micro_batches(distill, vocab_size, self.execution),
        }  # fmt: skip
        with self.store.hold("teaching", about, wait=True) as node:
            made = node.result or self._make(cell, ctx, node, about["micro_batches"])
            if made["temporary"] and not self.execution.cache_teacher and about not in self._temporary:
                self._temporary.append(about)
            # Opened while it is held: another process may discard it afterwards.
            return CachedTeacher(ctx.load(artifacts.teacher(cell, ctx)), read_cache(node.folder, made))

    def _make(self, cell: Cell, ctx: Context, node: Node, micro_batches: int) -> dict[str, Any]:
        distill, teacher = cell.distill, ctx.load(artifacts.teacher(cell, ctx))
        sequences = distill.max_steps * distill.batch_size
        needed = bytes_of(teacher, sequences, distill)
        clear(node.folder)
        free = shutil.disk_usage(node.folder).free
        if needed > free:
            raise ConfigError(f"--teacher-cache: {needed >> 20} MiB are needed, the store has {free >> 20} MiB left")
        data = RetrainingData(
            artifacts.tokens(cell, ctx), block=distill.seq_len, batch=distill.batch_size, steps=distill.max_steps,
            seed=cell.seed,
            accumulate=micro_batches, num_workers=self.execution.num_workers,
        )  # fmt: skip
        made = write_cache(
            FrozenTeacher(teacher), data.train_dataloader(), node.folder, sequences=sequences, block=distill.seq_len,
            top_k=distill.top_k, precision=distill.precision, device=ctx.device,
            tell=ctx.counter("caching teacher outputs", sequences, "sequence"),
        )  # fmt: skip
        return node.finish(made | {"temporary": not self.execution.cache_teacher})
