"""Estimate the cost of what is missing: student size, tokens and, from earlier results, time."""

from __future__ import annotations

import dataclasses
import heapq
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.config import EVIDENCE, Cell, Execution, Finetuning, Pretraining
from lit_prune.config.overrides import parent_of
from lit_prune.distill.budget import tokens_of_step
from lit_prune.models.llama import config_of
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.schedule import untrained_teachers, waves
from lit_prune.pipeline.stage import Context, Untracked
from lit_prune.pipeline.stages.teacher_outputs import TeacherOutputs
from lit_prune.pipeline.work import CACHING, OWN, WORK, flops_of_token, recorded
from lit_prune.progress import Silent
from lit_prune.pruning.shapes import config_of_student, pruned_config, teacher_config
from lit_prune.store import Node, Store
from lit_prune.store.address import key
from lit_prune.store.environment import environment, machine
from lit_prune.store.store import IDENTICAL

Run = tuple[float, float]
"""FLOPs of the retraining of a cell, and the seconds that the cell took."""
_SAMPLE = 128
"""Results of each stage, the newest, from which times are estimated; a store may have ten thousands."""
_ALIKE = 10.0
"""Factor within which the FLOPs of cells are about as many: a short cell spends its time on starting, not on FLOPs."""
_SHARED = {"tokenizer": "tokenizer", "tokens": "tokenising", "student": "pruning", CACHING: "teacher outputs"}
"""Stage -> label; every other stage calibrates."""


@dataclass(frozen=True)
class Cost:
    """The missing work of one row, or of a stage that cells share."""

    row: str
    cells: int
    """0 for a stage."""
    parameters: int
    """Parameters of the student or of the trained teacher; 0 for other stages."""
    steps: int
    """Optimizer steps of each cell."""
    tokens: int
    """Training tokens of all cells."""
    seconds: float | None
    """Estimated seconds of all cells; None without an earlier result."""


def costs(entries: Iterable[Entry], store: Store, runs: Iterable[Run], execution: Execution) -> list[Cost]:
    """Return the costs of the stages that missing cells wait for, of their teachers, and of the cells by row.

    `runs` are earlier cells on this machine. A retrained cell takes the median time per FLOP of those with about as
    many, one that is not retrained the median time, and a stage the median time per work of the same stage in the store
    on this machine.
    """
    planned = [entry for wave in waves(store, entries) for entry in wave]
    rows: dict[str, list[Entry]] = {}
    for entry in planned:
        rows.setdefault(entry.row, []).append(entry)
    runs, paces = list(runs), paces_of(store) if planned else {}
    teachers = untrained_teachers(store, (entry.cell for entry in planned))
    return [
        *_of_stages(planned, store, execution, paces),
        *(_of_teacher(*one, paces) for one in teachers),
        *(_of_row(row, of_row, runs) for row, of_row in rows.items()),
    ]


def _of_stages(
    planned: list[Entry], store: Store, execution: Execution, paces: Mapping[str, list[float]]
) -> Iterator[Cost]:
    """Yield the costs of tokenising, calibrating, pruning and caching, if they are not zero."""
    works = [(stage, recorded(stage, cell)) for stage, cell in awaited_stages(store, (entry.cell for entry in planned))]
    outputs = TeacherOutputs(store, execution)
    outputs.expect(planned, Context(store, execution, Silent(), Untracked(), {}, outputs))
    works += [(CACHING, {"work": work}) for work in outputs.unwritten()]
    names = {stage: _SHARED.get(stage, "calibration") for stage, _ in works}
    numbers = Counter(names[stage] for stage, _ in works)
    for name, number in numbers.items():
        times = [_stage_time(stage, work, paces) for stage, work in works if names[stage] == name]
        known = [seconds for seconds in times if seconds is not None]
        yield Cost(f"{name} ({number})", 0, 0, 0, 0, sum(known) if len(known) == len(times) else None)


def awaited_stages(store: Store, cells: Iterable[Cell]) -> Iterator[tuple[str, Cell]]:
    """Yield each missing stage that cells depend on once, except trained teachers and retrained parents."""
    seen = set()
    for cell in cells:
        for stage, one in _stages_before(store, cell):
            address = stage, key(one, stage)
            if address not in seen and store.node(one, stage).result is None:
                yield stage, one
            seen.add(address)


def _stages_before(store: Store, cell: Cell) -> Iterator[tuple[str, Cell]]:
    """Yield the stages of a cell's texts and of its pruning."""
    if cell.teacher.pretraining and store.node(cell, "teacher").result is None:
        yield "tokenizer", cell
    yield "tokens", cell
    if (second := cell.evaluation.second_corpus) is not None:
        yield "tokens", dataclasses.replace(cell, corpus=second)
    yield from _pruning(store, cell)


def _pruning(store: Store, cell: Cell) -> Iterator[tuple[str, Cell]]:
    """Yield the stages of a cell's student and statistics, after those of parents that are not retrained."""
    given = cell.prune.init_from is not None or cell.prune.init == "random"
    if given or store.node(cell, "student").result is not None:
        return
    parent = parent_of(cell)
    if parent is not None and not parent.distill.max_steps:
        yield from _pruning(store, parent)
    names = cell.prune.statistics(pruned_config(cell))
    yield from ((name, cell) for name in EVIDENCE if name in names)
    yield "student", cell


def _stage_time(stage: str, work: Mapping[str, float], paces: Mapping[str, list[float]]) -> float | None:
    """Return the seconds of a stage; a method's own FLOPs take the pace of earlier methods, else of calibrations."""
    cutting = _time(work["work"], paces.get(stage, []))
    if OWN not in work:
        return cutting
    # A parameter times a token is two FLOPs. Statistics of one pass share its seconds: the slowest is closest to it.
    passes = [pace / 2 for name in EVIDENCE for pace in paces.get(name, [])]
    own = _time(work[OWN], paces.get(OWN, []) or sorted(passes)[-1:])
    return None if own is None else own + (cutting or 0.0)


def _time(work: float, paces: list[float]) -> float | None:
    return work * statistics.median(paces) if paces else None


def _of_teacher(cell: Cell, recipe: Pretraining | Finetuning, paces: Mapping[str, list[float]]) -> Cost:
    if isinstance(recipe, Pretraining):
        stage, what, config = "teacher", "teacher: pretraining", config_of(recipe)
    else:
        stage, what, config = "correction", "teacher: fine-tuning", teacher_config(cell)
    tokens = recipe.max_steps * recipe.batch_size * recipe.seq_len
    seconds = _time(WORK[stage](cell), paces.get(stage, []))
    return Cost(what, 1, num_parameters(config), recipe.max_steps, tokens, seconds)


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
        alike = [run for run in runs if flops / _ALIKE <= run[0] <= flops * _ALIKE]
        return _time(flops, [seconds / spent for spent, seconds in alike])
    return _time(1.0, [seconds for spent, seconds in runs if not spent])


def _newest(store: Store, stage: str) -> list[Node]:
    """Return the nodes of a stage that changed last."""
    folder = store.root / stage
    if not folder.is_dir():
        return []
    with os.scandir(folder) as nodes:
        dated = [(node.stat().st_mtime_ns, node.name) for node in nodes]
    return [store.at(stage, address) for _, address in heapq.nlargest(_SAMPLE, dated)]


def runs_of(store: Store) -> list[Run]:
    """Return the newest cells of a store, as far as they were computed on this machine."""
    here, found = machine(environment()), []
    for node in _newest(store, "cell"):
        result, env = node.result or {}, node.env
        if "train_flops" in result and env.get("seconds") and IDENTICAL not in env and machine(env) == here:
            found.append((result["train_flops"], env["seconds"]))
    return found


def paces_of(store: Store) -> dict[str, list[float]]:
    """Return stage -> seconds per work of its newest results, as far as they were computed on this machine.

    Results without a recorded time or work are skipped. Teacher outputs are timed in the cells that cached them, and
    methods with FLOPs of their own apart from the others, without the time of cutting if that is known.
    """
    here = machine(environment())
    found: dict[str, list[float]] = {stage: [] for stage in (*WORK, CACHING)}
    methods: list[Mapping[str, float]] = []
    for stage in (*WORK, "cell"):
        for node in _newest(store, stage):
            env = node.env
            about: Mapping[str, Any] = env.get(CACHING, {}) if stage == "cell" else env
            if about.get("work") and "seconds" in about and machine(env) == here:
                if OWN in about:
                    methods.append(about)
                else:
                    found[CACHING if stage == "cell" else stage].append(about["seconds"] / about["work"])
    cutting = statistics.median(found["student"] or [0.0])
    return found | {OWN: [max(0.0, one["seconds"] - cutting * one["work"]) / one[OWN] for one in methods]}
