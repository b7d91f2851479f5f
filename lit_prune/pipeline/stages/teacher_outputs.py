"""Provide the teacher of each cell; cache its outputs if several missing cells need the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.config import Cell, ConfigError, Distill, Execution
from lit_prune.distill.cache import Cache, CachedTeacher, Contents, DiskFull, write_cache
from lit_prune.distill.hidden_states import pairs_of, relations_of
from lit_prune.distill.micro_batches import micro_batches
from lit_prune.distill.sharding import loading_device
from lit_prune.distill.teacher import FrozenTeacher, Teacher
from lit_prune.models.loading import load_model
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.stage import Context
from lit_prune.pipeline.work import CACHING, of_caching
from lit_prune.pruning.shapes import config_of_student, teacher_config
from lit_prune.store import Locked, Node, Store
from lit_prune.store.address import CACHE, canonical, digest, key

_SHARE = 0.5
"""Share of the free disk space that an automatic cache may take."""


@dataclass
class _Group:
    """Cells of a run that need the outputs of one teacher for the same micro-batches."""

    identity: dict[str, Any]
    need: Contents
    """The union of what they need."""
    waiting: dict[str, Cell]
    """Cells that are not computed yet, by address."""
    declined: bool = False
    """Whether the cache did not fit on the disk."""

    @property
    def work(self) -> float:
        """The work of writing the cache, proportional to its time."""
        return of_caching(next(iter(self.waiting.values())), self.need.sequences)


class TeacherOutputs:
    """Finds or writes the caches of a store."""

    def __init__(self, store: Store, execution: Execution) -> None:
        self.store, self.execution = store, execution
        self._groups: dict[str, _Group] = {}

    def expect(self, entries: Iterable[Entry], ctx: Context) -> list[Entry]:
        """Register the cells of a run; return them sorted so that the cells of a group are adjacent."""
        ordered: dict[str, list[Entry]] = {}
        for entry in entries:
            about = self._identity(entry.cell, ctx)
            address = entry.key if about is None else digest(about)
            ordered.setdefault(address, []).append(entry)
            if about is not None and entry.node(self.store).result is None:
                need = self._need(entry.cell)
                group = self._groups.setdefault(address, _Group(about, need, {}))
                group.need |= need
                group.waiting[entry.key] = entry.cell
        return [entry for group in ordered.values() for entry in group]

    def unwritten(self) -> list[float]:
        """Return the work of each cache still to be written for the registered cells."""
        least = 1 if self.execution.keep_teacher_cache else 2
        groups = [group for group in self._groups.values() if len(group.waiting) >= least]
        nodes = [(group, Node(self._folder(group))) for group in groups]
        return [group.work for group, node in nodes if not _serves(node, node.result, group.need)]

    def of(self, cell: Cell, ctx: Context) -> Teacher | None:
        """Return the teacher of a cell's retraining; None if its objective needs none."""
        distill = cell.distill
        if not distill.max_steps or not distill.needs_teacher:
            return None
        location, device = artifacts.imitated(cell, ctx), loading_device(self.execution)
        if distill.teacher_optimizer is not None or device == "meta":  # a trained teacher serves this cell alone
            return FrozenTeacher(load_model(location, device))
        model, cache = ctx.load(location), self._cache(cell, ctx)
        return FrozenTeacher(model) if cache is None else CachedTeacher(model, cache)

    def release(self, cell: Cell, ctx: Context) -> None:
        """Mark a cell as computed or failed; remove its cache if no other cell of the run needs it."""
        group = self._group(cell, ctx)
        if group is None or group.waiting.pop(key(cell), None) is None or group.waiting:
            return
        folder = self._folder(group)
        if folder.is_dir() and not (Node(folder).result or {}).get("keep"):
            with contextlib.suppress(Locked):  # the process that writes it removes it
                self.store.remove(folder)

    def _folder(self, group: _Group) -> Path:
        return self.store.root / CACHE / digest(group.identity)

    def _group(self, cell: Cell, ctx: Context) -> _Group | None:
        about = self._identity(cell, ctx)
        return None if about is None else self._groups.get(digest(about))

    def _identity(self, cell: Cell, ctx: Context) -> dict[str, Any] | None:
        """Return the key that cells served by the same cache share; None if no cache can serve the cell."""
        distill, execution = cell.distill, self.execution
        if not execution.cache_teacher or execution.devices > 1 or not _shares_outputs(distill):
            return None  # few cells imitate the same parent
        return {
            "teacher": canonical(cell.teacher), "corpus": canonical(cell.corpus), "seed": cell.seed,
            "seq_len": distill.seq_len, "batch_size": distill.batch_size, "precision": distill.precision,
            "micro_batches": micro_batches(distill, teacher_config(cell), execution), "device": ctx.device.type,
        }  # fmt: skip

    def _need(self, cell: Cell) -> Contents:
        """Return the teacher outputs that the objective of a cell reads."""
        distill, pairs = cell.distill, []
        if distill.alpha:
            depths = teacher_config(cell).num_hidden_layers, config_of_student(cell).num_hidden_layers
            pairs = pairs_of(distill, *depths) + relations_of(distill, *depths)
        return Contents(
            distill.max_steps * distill.batch_size, frozenset(pair.teacher for pair in pairs), distill.top_k
        )

    def _cache(self, cell: Cell, ctx: Context) -> Cache | None:
        """Return the cache that serves a cell, written if worth it; None if the teacher must run instead.

        Raises:
            ConfigError: if the cache was requested and does not fit on the disk.
        """
        group, keep = self._group(cell, ctx), self.execution.keep_teacher_cache
        if group is None or group.declined:
            return None
        missing = [one for one in group.waiting.values() if self.store.node(one, "cell").result is None]
        worthwhile = keep or len(missing) > 1
        if not worthwhile and not self._folder(group).is_dir():
            return None
        with ctx.clock.lap(), self.store.hold(CACHE, group.identity, wait=True) as node:
            found = node.result
            if not _serves(node, found, self._need(cell)):
                found = self._write(cell, ctx, group, node, found) if worthwhile else None
            elif keep and found is not None and not found["keep"]:
                found = node.finish({**found, "keep": True})
            return None if found is None else Cache.read(node.folder, found)

    def _write(
        self, cell: Cell, ctx: Context, group: _Group, node: Node, found: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Write the cache of a group, with an older one's contents; return its description, or None if too big."""
        # Imports Lightning, which a plan of the work does not need.
        from lit_prune.data.retraining import RetrainingData

        keep, contents = self.execution.keep_teacher_cache, group.need
        if found is not None:
            keep, contents = keep or found["keep"], contents | Cache.read(node.folder, found).contents
            node.reopen()
        distill = cell.distill
        data = RetrainingData(
            artifacts.tokens(cell, ctx), seq_len=distill.seq_len, batch_size=distill.batch_size,
            max_steps=contents.sequences // distill.batch_size, seed=cell.seed,
            grad_accum_steps=group.identity["micro_batches"],
            num_workers=self.execution.num_workers,
        )  # fmt: skip
        teacher = FrozenTeacher(ctx.load(artifacts.teacher(cell, ctx)))
        try:
            with ctx.clock.lap() as lap:
                written = write_cache(
                    teacher, data.train_dataloader(), node.folder,
                    contents, seq_len=distill.seq_len, precision=distill.precision, device=ctx.device,
                    share_of_disk=1.0 if self.execution.keep_teacher_cache else _SHARE,
                    on_progress=ctx.counter("caching teacher outputs", contents.sequences, "sequence"),
                )  # fmt: skip
        except DiskFull as full:
            if self.execution.keep_teacher_cache:
                raise ConfigError(f"--keep-teacher-cache: {full}") from full
            group.declined = True
            ctx.say(f"teacher outputs are not cached: {full}")
            return None
        about = {"seconds": lap.seconds, "work": of_caching(cell, contents.sequences)}
        ctx.env[CACHING] = about  # the cache itself is removed
        return node.finish({**written, "keep": keep}, **about)


def _serves(node: Node, found: dict[str, Any] | None, need: Contents) -> bool:
    """Return whether a cache has all that `need` lists."""
    return found is not None and Cache.read(node.folder, found).contents.serves(need)


def _shares_outputs(distill: Distill) -> bool:
    """Return whether a retraining needs a teacher, which other students have too, on sequences known before it."""
    needs = bool(distill.max_steps and distill.needs_teacher)
    frozen = distill.imitate == "teacher" and distill.teacher_optimizer is None
    return needs and frozen and distill.dynamic_loading is None
