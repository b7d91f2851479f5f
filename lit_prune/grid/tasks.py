"""Divide the missing work of a table into tasks: shared stages first, then cells. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lit_prune.config import Cell
from lit_prune.config.overrides import parent_of
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Node, Store
from lit_prune.store.address import key

_CALIBRATION = "importance"
"""Name under which the sections of a calibration set are hashed."""


@dataclass(frozen=True)
class Task:
    """One address to compute."""

    stage: str
    entry: Entry
    """A cell that needs it, or the cell itself."""
    needs: frozenset[str] = frozenset()
    """Names of tasks whose results it reads; it fails if one of them fails."""
    after: frozenset[str] = frozenset()
    """Names of tasks that it only waits for, since they compute parts that it would compute too."""

    @property
    def name(self) -> str:
        """Stage and address, as in the name of the lease."""
        return f"{self.stage}-{key(self.entry.cell, self.stage)}"

    @property
    def title(self) -> str:
        """The task in messages."""
        cell = f"{self.entry.row}, seed {self.entry.seed}"
        return cell if self.stage == "cell" else f"{self.stage} of {cell}"

    def node(self, store: Store) -> Node:
        """Return the node that it fills."""
        return store.node(self.entry.cell, self.stage)


def tasks_of(store: Store, entries: Iterable[Entry]) -> list[Task]:
    """Return the tasks of the missing cells, each once. Entries are in order: parents before cells cut from them."""
    return list(_Plan(store, entries).tasks.values())


class _Plan:
    def __init__(self, store: Store, entries: Iterable[Entry]) -> None:
        self.store, self.tasks = store, dict[str, Task]()
        self._leaders: dict[str, str] = {}
        for entry in entries:
            if store.node(entry.cell, "cell").result is None:
                self._add("cell", entry, self._teacher(entry) | self._student(entry, entry.cell))

    def _add(self, stage: str, entry: Entry, needs: frozenset[str], after: frozenset[str] = frozenset()) -> str:
        task = Task(stage, entry, needs, after)
        return self.tasks.setdefault(task.name, task).name

    def _missing(self, cell: Cell, stage: str) -> bool:
        return self.store.node(cell, stage).result is None

    def _teacher(self, entry: Entry) -> frozenset[str]:
        """Return the tasks of the teacher of a cell, which are at most its pretraining and its fine-tuning."""
        needs = frozenset[str]()
        if entry.cell.teacher.pretraining is not None and self._missing(entry.cell, "teacher"):
            needs = frozenset({self._add("teacher", entry, needs)})
        if entry.cell.teacher.finetune is not None and self._missing(entry.cell, "correction"):
            needs = frozenset({self._add("correction", entry, needs)})
        return needs

    def _student(self, entry: Entry, cell: Cell) -> frozenset[str]:
        """Return the tasks that a cell's student needs, the last of which prunes it."""
        if cell.prune.init != "teacher" or cell.prune.init_from is not None or not self._missing(cell, "student"):
            return frozenset()
        parent = parent_of(cell)
        if parent is None:
            needs = self._teacher(entry)
        elif parent.distill.max_steps:
            needs = frozenset({f"cell-{key(parent)}"} & self.tasks.keys())
        else:
            needs = self._student(entry, parent)
        if cell is not entry.cell:  # the student of an untrained parent is computed with that of the cell
            return needs
        # The first student of a calibration set collects the statistics of all.
        name = f"student-{key(cell, 'student')}"
        leader = self._leaders.setdefault(key(cell, _CALIBRATION), name)
        return frozenset({self._add("student", entry, needs, frozenset({leader} - {name}))})
