"""What cells cost, known before they are computed: size of the student, tokens, FLOPs and, from earlier ones, time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lit_prune.config import Cell, Finetuning, Pretraining
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.flops import recipe_flops
from lit_prune.models.llama import config_of
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.schedule import untrained_teachers, waves
from lit_prune.pruning.shapes import config_of_student, imitated_config, teacher_config
from lit_prune.store import Node, Store
from lit_prune.store.environment import environment, machine


def flops_of_token(cell: Cell, student: Any = None) -> float:
    """FLOPs a token of a cell's retraining, with the forward pass of what it imitates and its training alongside.

    The correction of a teacher before it is not charged. `student` is the student's config, predicted if not given.
    """
    teacher = imitated_config(cell) if cell.distill.needs_teacher else None
    return recipe_flops(cell.distill, student or config_of_student(cell), teacher)


Run = tuple[float, float]
"""FLOPs of the retraining of a cell, and the seconds that the cell took."""


@dataclass(frozen=True)
class Cost:
    """What is still to be computed of one row."""

    row: str
    cells: int
    parameters: int
    """Of the student, or of the teacher that is trained."""
    steps: int
    """Of each cell."""
    tokens: int
    """Of the training of all cells."""
    seconds: float | None
    """Of all cells; None if no earlier run tells."""


def costs(entries: Iterable[Entry], store: Store, runs: Iterable[Run]) -> list[Cost]:
    """Return the costs of missing cells by row, after those of the teachers and sources that they wait for.

    `runs` are earlier cells on this machine. A retrained cell takes their median time per FLOP, one that is not
    retrained their median time.
    """
    planned = [entry for wave in waves(store, entries) for entry in wave]
    rows: dict[str, list[Entry]] = {}
    for entry in planned:
        rows.setdefault(entry.row, []).append(entry)
    runs = list(runs)
    teachers = untrained_teachers(store, (entry.cell for entry in planned))
    return [*(_of_teacher(*one) for one in teachers), *(_of_row(row, of_row, runs) for row, of_row in rows.items())]


def _of_teacher(cell: Cell, recipe: Pretraining | Finetuning) -> Cost:
    if isinstance(recipe, Pretraining):
        what, config = "teacher: pretraining", config_of(recipe)
    else:
        what, config = "teacher: fine-tuning", teacher_config(cell)
    tokens = recipe.max_steps * recipe.batch_size * recipe.seq_len
    return Cost(what, 1, num_parameters(config), recipe.max_steps, tokens, None)


def _of_row(row: str, entries: list[Entry], runs: list[Run]) -> Cost:
    cell, count = entries[0].cell, len(entries)
    student, tokens = config_of_student(cell), cell.distill.max_steps * tokens_of_step(cell.distill)
    seconds = _seconds(tokens * flops_of_token(cell, student) if tokens else 0.0, runs)
    return Cost(
        row, count, num_parameters(student), cell.distill.max_steps, count * tokens,
        None if seconds is None else count * seconds,
    )  # fmt: skip


def _seconds(flops: float, runs: list[Run]) -> float | None:
    if flops:
        paces = [seconds / spent for spent, seconds in runs if spent]
        return flops * statistics.median(paces) if paces else None
    times = [seconds for spent, seconds in runs if not spent]
    return statistics.median(times) if times else None


def runs_of(store: Store) -> list[Run]:
    """Return the cells of a store that were computed on this machine."""
    here, found = machine(environment()), []
    for folder in (store.root / "cell").glob("*"):
        node = Node(folder)
        result, env = node.result or {}, node.env
        if "train_flops" in result and env.get("seconds") and machine(env) == here:
            found.append((result["train_flops"], env["seconds"]))
    return found
