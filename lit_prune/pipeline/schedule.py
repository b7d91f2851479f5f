"""Order the missing work of a table: parents before the cells cut from them. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from lit_prune.config import Cell, Finetuning, Pretraining
from lit_prune.config.overrides import parent_of
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store
from lit_prune.store.address import key


def planned_steps(store: Store, entries: Iterable[Entry]) -> int:
    """Return the optimizer steps of the missing cells and of the parents and teachers they depend on."""
    cells = [entry.cell for entry in entries if entry.node(store).result is None]
    missing = {key(c): c for cell in cells for c in (*awaited_parents(store, cell), cell)}.values()
    teachers = untrained_teachers(store, missing)
    return sum(cell.distill.max_steps for cell in missing) + sum(recipe.max_steps for _, recipe in teachers)


def untrained_teachers(store: Store, cells: Iterable[Cell]) -> list[tuple[Cell, Pretraining | Finetuning]]:
    """Return each missing pretraining or fine-tuning of a teacher once, with a cell that needs it."""
    found: dict[str, tuple[Cell, Pretraining | Finetuning]] = {}
    for cell in cells:
        for stage, recipe in (("teacher", cell.teacher.pretraining), ("correction", cell.teacher.finetune)):
            if recipe and store.node(cell, stage).result is None:
                found[key(cell, stage)] = cell, recipe
    return list(found.values())


def awaited_parents(store: Store, cell: Cell) -> Iterator[Cell]:
    """Yield the missing retrained parents on which a cell's student depends, oldest first."""
    parent = parent_of(cell)
    if parent is None or store.node(cell, "student").verified is not None:
        return
    if not parent.distill.max_steps:
        yield from awaited_parents(store, parent)
    elif store.node(parent, "cell").verified is None:
        yield from awaited_parents(store, parent)
        yield parent


def waves(store: Store, entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the entries and their parents, each once, in waves: a wave depends only on earlier ones."""
    found: dict[int, dict[str, Entry]] = {}
    for entry in entries:
        awaited = list(awaited_parents(store, entry.cell))
        for place, parent in enumerate(awaited):
            row = f"{entry.row}, parent {place + 1} of {len(awaited)}"
            found.setdefault(place, {}).setdefault(
                key(parent), dataclasses.replace(entry, row=row, cell=parent, parent=True)
            )
        found.setdefault(len(awaited), {})[entry.key] = entry
    return [list(found[place].values()) for place in sorted(found)]
