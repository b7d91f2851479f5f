"""The teacher of a retraining as a runner needs it: in memory, shared by the cells in turns, or read from a cache."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from lit_prune.config import Cell, ConfigError
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill.cache import CachedTeacher, bytes_of, clear, read_cache, write_cache
from lit_prune.distill.teacher import FrozenTeacher
from lit_prune.distill.train import micro_batches
from lit_prune.models.loading import load_model
from lit_prune.pipeline.cohort import Cohort
from lit_prune.store import Node
from lit_prune.store.address import canonical

if TYPE_CHECKING:
    from lit_prune.pipeline.runner import Runner


class Teachings:
    """Finds or makes them for a runner, whose store, teacher, tokens and progress it uses."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.store = runner, runner.store
        self._teaching: FrozenTeacher | None = None
        self._cached = False
        self._temporary: list[dict[str, Any]] = []

    def begin(self, cohort: Cohort) -> None:
        """Teach other cells, for whose data nothing shown so far is of use.

        Where memory cuts the cells that share a teacher into several cohorts, what it shows is kept on disk.
        """
        self._teaching = None
        self._cached = cohort.cut or self.runner.execution.teacher_cache

    def of(self, cell: Cell) -> FrozenTeacher | CachedTeacher | None:
        """The teacher of a cell's retraining; None where its objective needs none."""
        distill = cell.distill
        if not distill.needs_teacher:
            return None
        if distill.teacher_optim is not None:  # it is trained too, for this cell alone
            return FrozenTeacher(load_model(self.runner.teacher(cell)))
        if self._cached and not distill.alpha:
            return self._from_cache(cell)
        if self._teaching is None:
            self._teaching = FrozenTeacher(self.runner.load(self.runner.teacher(cell)))
        return self._teaching

    def end(self) -> None:
        """Remove the caches that were made only because memory cut a cohort."""
        for about in self._temporary:
            self.store.discard("teaching", about)
        self._temporary = []

    def _from_cache(self, cell: Cell) -> CachedTeacher:
        """What the teacher shows of all that a cell reads, made where it is missing or damaged."""
        distill = cell.distill
        vocab_size = self.runner.load(self.runner.teacher(cell)).config.vocab_size
        about = {
            "teacher": canonical(cell.teacher), "corpus": canonical(cell.corpus), "block": distill.block,
            "batch": distill.batch, "steps": distill.steps, "seed": cell.seed, "precision": distill.precision,
            "top_k": distill.top_k, "micro_batches": micro_batches(distill, vocab_size, self.runner.execution),
        }  # fmt: skip
        with self.store.hold("teaching", about, wait=True) as node:
            made = node.result or self._make(cell, node, about["micro_batches"])
            if made["temporary"] and not self.runner.execution.teacher_cache and about not in self._temporary:
                self._temporary.append(about)
            # Opened while it is held: another process may discard it afterwards.
            return CachedTeacher(self.runner.load(self.runner.teacher(cell)), read_cache(node.folder, made))

    def _make(self, cell: Cell, node: Node, micro_batches: int) -> dict[str, Any]:
        distill, teacher = cell.distill, self.runner.load(self.runner.teacher(cell))
        sequences = distill.steps * distill.batch
        needed = bytes_of(teacher, sequences, distill)
        clear(node.folder)
        free = shutil.disk_usage(node.folder).free
        if needed > free:
            raise ConfigError(f"--teacher-cache: {needed >> 20} MiB are needed, the store has {free >> 20} MiB left")
        data = RetrainingData(
            self.runner.tokens(cell), block=distill.block, batch=distill.batch, steps=distill.steps, seed=cell.seed,
            accumulate=micro_batches, num_workers=self.runner.execution.workers,
        )  # fmt: skip
        made = write_cache(
            FrozenTeacher(teacher), data.train_dataloader(), node.folder, sequences=sequences, block=distill.block,
            top_k=distill.top_k, precision=distill.precision, device=self.runner.device,
            tell=self.runner.counter("caching teacher outputs", sequences, "sequence"),
        )  # fmt: skip
        return node.finish(made | {"temporary": not self.runner.execution.teacher_cache})
