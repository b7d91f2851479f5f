"""Which cells are retrained in turns: those that show one teacher the same batches, as many as memory holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from lit_prune.config import Cell, Execution
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.expand import Entry
from lit_prune.pruning.shapes import config_of_student, teacher_config

_BYTES = 16
"""Of a parameter in training: the weight, its gradient and two moments, float32."""

_SHARE = 0.5
"""Of the memory that is free, what the students of a cohort may take; the rest is for activations."""


@dataclass(frozen=True)
class Cohort:
    """Cells that are computed in turns."""

    entries: list[Entry]
    cut: bool = False
    """Whether other cohorts, for which there was no room, need the same of the teacher."""


def cohorts(entries: Iterable[Entry], execution: Execution) -> Iterator[Cohort]:
    """Yield the entries in the order of each cohort's first; one that shares nothing is a cohort of its own.

    Free memory is measured when a cohort is taken from the iterator, so take it when the one before is computed.
    """
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_shared(entry.cell, execution) or entry.key, []).append(entry)
    for group in groups.values():
        yield from _parts(group, execution)


def _shared(cell: Cell, execution: Execution) -> Any:
    """What must be the same for one pass of the teacher to serve two cells; None where there is no such pass."""
    distill = cell.distill
    if not execution.cohort or not distill.max_steps or not distill.needs_teacher or distill.teacher_optimizer:
        return None
    return cell.teacher, cell.corpus, cell.seed, distill.seq_len, distill.batch_size, distill.precision


def _parts(group: list[Entry], execution: Execution) -> Iterator[Cohort]:
    # What is cut from a teacher is no larger than it, and need not exist yet.
    configs = (config_of_student(e.cell) if e.cell.prune.init_from else teacher_config(e.cell) for e in group)
    needed = _BYTES * max(map(num_parameters, configs)) if len(group) > 1 else 1
    cut = False
    while group:
        size = max(1, int(_SHARE * _free_memory(execution)) // needed)
        cut = cut or size < len(group)
        yield Cohort(group[:size], cut)
        group = group[size:]


def _free_memory(execution: Execution) -> int:
    if execution.accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available
