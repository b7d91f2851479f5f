"""What the rows of a table really compute: a table with two rows of the same outcome compares nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lit_prune.config import Cell, ConfigError, Corpus, Distill, Importance, Pretraining, Student
from lit_prune.config.overrides import source_of
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.validate import check
from lit_prune.pruning.shapes import config_of_student, pruned_configs, teacher_config
from lit_prune.store.address import key

Answer = TypeVar("Answer")


def check_rows(table: Table, profile: str, found: Iterable[Entry]) -> None:
    """Validate every row of a table and refuse one whose rows compare nothing; reads configs, loads no weights.

    Raises:
        ConfigError: if a cell cannot be computed, two rows have the same outcome, a retrained row prunes nothing, or
            two texts of the table are the same. The message names the rows.
    """
    # The seeds of a row differ in nothing but their numbers.
    rows = list({entry.row: entry for entry in reversed(list(found))}.values())[::-1]
    for_rows(rows, lambda entry: check(entry.cell))
    for row in rows:
        _check_texts(table, row.cell)
    where = f"{table.name} at {profile}"
    for row in rows:
        if not row.reference and _imitates_itself(row.cell):
            raise ConfigError(
                f"{where}: row {row.row!r} prunes nothing, so its student already is the teacher it imitates; "
                "give one of student.layers, hidden, neurons and heads"
            )
    seen: dict[tuple[str, ...], Entry] = {}
    for row in rows:
        twin = seen.setdefault(outcome(row.cell), row)
        if twin is not row:
            names = f"rows {twin.row!r} and {row.row!r}"
            raise ConfigError(f"{where}: {names} compute the same, as {_without_effect(twin, row)}")


def for_rows(rows: Sequence[Entry], compute: Callable[[Entry], Answer]) -> list[Answer]:
    """Compute something for every row; an error names its row unless all but references raise one.

    Raises:
        ConfigError: as `compute`.
    """
    answers: list[Answer] = []
    for place, entry in enumerate(rows):
        try:
            answers.append(compute(entry))
        except ConfigError as error:
            if answers or any(_passes(other, compute) for other in rows[place + 1 :] if not other.reference):
                raise ConfigError(f"{error} (row {entry.row!r})") from None
            raise
    return answers


def _passes(entry: Entry, compute: Callable[[Entry], Any]) -> bool:
    try:
        compute(entry)
    except ConfigError:
        return False
    return True


def _without_effect(first: Entry, second: Entry) -> str:
    """The fields in which two entries of the same outcome differ."""
    paths = dict.fromkeys([*first.changes, *second.changes])
    differ = [path for path in paths if first.changes.get(path) != second.changes.get(path)]
    return f"they differ only in what has no effect there: {', '.join(differ)}"


# Outcomes


def outcome(cell: Cell) -> tuple[str, ...]:
    """Return an address for each model of a cell's chain, its sources first, equal for cells that compute the same.

    Sizes are resolved to counts, and fields without effect are at their defaults.
    """
    return tuple(key(_effective(asked, pruned)) for asked, pruned in pruned_configs(cell))


def _effective(cell: Cell, pruned: Any) -> Cell:
    student = _effective_student(cell.student, pruned)
    calibrated = student.model is None and student.plan is None and student.weights == "teacher"
    return dataclasses.replace(
        cell,
        source=None,
        importance=cell.importance if calibrated else Importance(),
        student=student,
        distill=_effective_distill(cell, pruned),
    )


def _effective_student(student: Student, pruned: Any) -> Student:
    """The student with sizes as counts and without criteria that choose nothing."""
    from lit_prune.importance.criteria import criteria
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.allocate import block_allocators
    from lit_prune.pruning.target import target

    def kept(*names: str) -> dict[str, Any]:
        return {name: getattr(student, name) for name in names}

    if student.model is not None or student.plan is not None:
        return Student(**kept("model", "plan", "fingerprint", "weights"))
    shape, whole = target(student, pruned), shape_of(pruned)
    fields = dataclasses.asdict(shape)
    if student.weights == "random":
        return Student(**fields, weights="random")
    dropped = whole.layers - shape.layers
    fields |= kept("drop")
    if dropped and not student.drop:
        reads = block_allocators[student.blocks].reads
        # The least important span of one layer is the least important layer.
        fields["blocks"] = "lowest" if (dropped, student.blocks) == (1, "contiguous") else student.blocks
        fields |= kept("block_criterion") if reads else {}
    if shape.hidden < whole.hidden or shape.neurons < whole.neurons or shape.heads < whole.heads:
        moments = {"importance", "head_channels", "preactivations"} & set(criteria[student.criterion].needs)
        fields |= kept("criterion") | (kept("batch", "seq") if moments else {})
    if shape.neurons < whole.neurons or shape.heads < whole.heads:
        fields |= kept("widths")
    if shape.heads < whole.heads:
        fields |= kept("head_residual")
    return Student(**fields, rounds=student.rounds)


def _effective_distill(cell: Cell, pruned: Any) -> Distill:
    """The recipe with layers by number and without parts of the objective that have no effect."""
    from lit_prune.distill.hidden_states import pairs_of, relations_of
    from lit_prune.pruning.prune import num_blocks

    distill, defaults = cell.distill, Distill()
    if not distill.steps:
        return Distill(steps=0)
    changes: dict[str, Any] = {}
    if not distill.w_logits:
        unused = ("logit_loss", "temperature", "tau_squared", "mix", "top_k")
        changes |= {name: getattr(defaults, name) for name in unused}
    else:
        vocab_size = teacher_config(cell).vocab_size
        changes["tau_squared"] = distill.tau_squared and distill.temperature != 1
        changes["top_k"] = None if distill.top_k == vocab_size else distill.top_k
    if distill.alpha:
        theirs = teacher_config(cell).num_hidden_layers
        given = cell.student.model is not None
        ours = config_of_student(cell).num_hidden_layers if given else num_blocks(cell.student, pruned)
        for name, other in (("mlp_input", "block_output"), ("block_output", "mlp_input")):
            hidden: dict[str, Any] = {"embedding": False, other: ()}
            alone = dataclasses.replace(distill, **hidden)
            maps = sorted((pair.teacher[1], pair.student[1]) for pair in pairs_of(alone, theirs, ours))
            changes[name] = tuple(f"{teacher}:{student}" for teacher, student in maps)
        relations = sorted({(p.teacher[1], p.student[1]) for p in relations_of(distill, theirs, ours)})
        changes["attention"] = tuple(f"{teacher}:{student}" for teacher, student in relations)
    return dataclasses.replace(distill, **changes)


def _imitates_itself(cell: Cell) -> bool:
    """Whether a cell is retrained to imitate the very model it starts from."""
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.target import target

    student, distill = cell.student, cell.distill
    if not (distill.steps and distill.needs_teacher) or cell.source is not None or student.weights == "random":
        return False
    if student.model is not None or student.plan is not None:
        return False
    config = teacher_config(cell)
    return target(student, config) == shape_of(config)


# Texts


def _check_texts(table: Table, cell: Cell) -> None:
    for path, other in table.different_texts:
        text, against = _text(cell, path), _text(cell, other)
        if text is not None and against is not None and _same_text(text, against):
            raise ConfigError(
                f"{path}.source: must be another text than {other}.source in {table.name}, got {text.source!r} and "
                f"{against.source!r}; set one of the two"
            )


def _text(cell: Cell, path: str) -> Corpus | None:
    """The text at a dotted path; None if the cell has no such section."""
    if path.startswith("source."):
        source = source_of(cell)
        return None if source is None else _text(source, path.removeprefix("source."))
    if path == "teacher.pretraining.corpus":
        shipped = Pretraining() if cell.teacher.model == Cell().teacher.model else None
        recipe = cell.teacher.pretraining or shipped
        return None if recipe is None else recipe.corpus
    return cell.evaluation.second if path == "evaluation.second" else cell.corpus


_PYTHON = ("python", "python+dependencies")
"""Sources of which one holds the other."""


def _same_text(text: Corpus, other: Corpus) -> bool:
    if text.fingerprint and text.fingerprint == other.fingerprint:
        return text.subset == other.subset
    if text.source in _PYTHON and other.source in _PYTHON:
        return True
    return (text.source, text.subset, text.column) == (other.source, other.subset, other.column)
