"""Remove the pruned students of a run after use if together they would fill the disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable

from lit_prune.config import Cell
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.expand import Entry
from lit_prune.progress import Progress
from lit_prune.pruning.shapes import config_of_student
from lit_prune.store import Locked, Store
from lit_prune.store.address import key

_SHARE = 0.25
"""Share of the free disk space up to which the students of a run are kept."""
_BYTES = 4
"""Bytes per parameter of a saved student, float32."""


class Students:
    """Tracks which missing cells need each student of a run, and removes students that none needs.

    A student that a later cell needs is cut again from the calibration statistics. One that existed before
    the run, or that another process holds, is left alone.
    """

    def __init__(self, store: Store, *, keep: bool) -> None:
        """Create a tracker; `keep` keeps all students, whatever their size."""
        self.store, self._kept = store, keep
        self._waiting: dict[str, set[str]] = {}

    def expect(self, entries: Iterable[Entry], progress: Progress) -> None:
        """Register the missing cells and decide whether to keep their students."""
        made: dict[str, Cell] = {}
        for entry in entries:
            cell = entry.cell
            if cell.prune.init != "teacher" or cell.prune.init_from is not None:
                continue
            if self.store.node(cell, "cell").result is None and self.store.node(cell, "student").result is None:
                self._waiting.setdefault(key(cell, "student"), set()).add(entry.key)
                made[key(cell, "student")] = cell
        if self._kept:
            return
        num_bytes = _BYTES * sum(num_parameters(config_of_student(cell)) for cell in made.values())
        self.store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.store.root).free
        self._kept = num_bytes <= _SHARE * free
        if not self._kept:
            progress.say(
                f"{len(made)} pruned students of {num_bytes / 1e9:.1f} GB in all ({free / 1e9:.1f} GB are free) are "
                f"removed after use"
            )

    def release(self, cell: Cell) -> None:
        """Mark a cell as computed or failed; remove its student if no other cell of the run needs it."""
        address = key(cell, "student")
        waiting = self._waiting.get(address)
        if waiting is None:
            return
        waiting.discard(key(cell))
        if not waiting:
            del self._waiting[address]
            if not self._kept:
                with contextlib.suppress(Locked):
                    self.store.remove(self.store.node(cell, "student").folder)
