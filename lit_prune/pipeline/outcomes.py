"""Detect rows of a table that compute the same model: such a table compares nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lit_prune.config import Calibration, Cell, ConfigError, Corpus, Distill, Pretraining
from lit_prune.config.overrides import parent_of
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.validate import check
from lit_prune.pruning.shapes import config_of_student, imitated_config, keeps_all, pruned_configs, teacher_config
from lit_prune.store.address import key

Answer = TypeVar("Answer")


def check_rows(table: Table, profile: str, found: Iterable[Entry]) -> None:
    """Check that every row of a table is valid and no two compute the same; read configs only, no weights.

    Raises:
        ConfigError: if a cell is invalid, two rows have the same outcome, a retrained row prunes nothing, or
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
                "give one of prune.num_hidden_layers, hidden, neurons and heads"
            )
    seen: dict[tuple[str, ...], Entry] = {}
    for row in rows:
        twin = seen.setdefault(outcome(row.cell), row)
        if twin is not row:
            names = f"rows {twin.row!r} and {row.row!r}"
            raise ConfigError(f"{where}: {names} compute the same, as {_without_effect(twin, row)}")


def for_rows(rows: Sequence[Entry], compute: Callable[[Entry], Answer]) -> list[Answer]:
    """Return `compute` of every row; an error names its row, unless every row but the references fails.

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
    """Return the fields without effect in which two entries of the same outcome differ."""
    paths = dict.fromkeys([*first.changes, *second.changes])
    differ = [path for path in paths if first.changes.get(path) != second.changes.get(path)]
    return f"they differ only in what has no effect there: {', '.join(differ)}"


# Outcomes


def outcome(cell: Cell) -> tuple[str, ...]:
    """Return one address per model of a cell's chain, parents first, equal for cells that compute the same.

    Sizes are resolved to counts, and fields without effect are at their defaults.
    """
    return tuple(key(_effective(requested, pruned)) for requested, pruned in pruned_configs(cell))


def _effective(cell: Cell, pruned: Any) -> Cell:
    student = cell.prune
    calibrated = student.init_from is None and student.plan_path is None and student.init == "teacher"
    return dataclasses.replace(
        cell,
        parent=None,
        calibration=cell.calibration if calibrated else Calibration(),
        prune=student if student.init_from else student.effective(pruned),
        distill=_effective_distill(cell, pruned),
    )


def _effective_distill(cell: Cell, pruned: Any) -> Distill:
    """Return the recipe with layers by number and without parts of the objective that have no effect."""
    from lit_prune.distill.hidden_states import pairs_of, relations_of

    distill, defaults = cell.distill, Distill()
    if not distill.max_steps:
        return Distill(max_steps=0)
    changes: dict[str, Any] = {} if distill.needs_teacher else {"imitate": defaults.imitate}
    if not distill.kd_weight:
        unused = ("logit_loss", "temperature", "scale_by_temperature_squared", "mixture", "top_k")
        changes |= {name: getattr(defaults, name) for name in unused}
    else:
        vocab_size = teacher_config(cell).vocab_size
        changes["scale_by_temperature_squared"] = distill.scale_by_temperature_squared and distill.temperature != 1
        changes["top_k"] = None if distill.top_k == vocab_size else distill.top_k
    if distill.alpha:
        theirs = imitated_config(cell).num_hidden_layers
        ours = config_of_student(cell, pruned).num_hidden_layers
        for name, other in (("match_mlp_input", "match_layer_output"), ("match_layer_output", "match_mlp_input")):
            hidden: dict[str, Any] = {"match_embedding": False, other: ()}
            alone = dataclasses.replace(distill, **hidden)
            maps = sorted((pair.teacher[1], pair.student[1]) for pair in pairs_of(alone, theirs, ours))
            changes[name] = tuple(f"{teacher}:{student}" for teacher, student in maps)
        relations = sorted({(p.teacher[1], p.student[1]) for p in relations_of(distill, theirs, ours)})
        changes["match_attention"] = tuple(f"{teacher}:{student}" for teacher, student in relations)
    return dataclasses.replace(distill, **changes)


def _imitates_itself(cell: Cell) -> bool:
    """Return whether a cell's student imitates the model from which it starts."""

    student, distill = cell.prune, cell.distill
    if not (distill.max_steps and distill.needs_teacher) or student.init == "random":
        return False
    if cell.parent is not None and distill.imitate == "teacher":
        return False
    if student.init_from is not None or student.plan_path is not None or student.sparse:
        return False
    config = imitated_config(cell)
    return keeps_all(student.config_of(config), config)


# Texts


def _check_texts(table: Table, cell: Cell) -> None:
    for path, other in table.different_texts:
        text, against = _text(cell, path), _text(cell, other)
        if text is not None and against is not None and _same_text(text, against):
            raise ConfigError(
                f"{path}.path: must be another text than {other}.path in {table.name}, got {text.path!r} and "
                f"{against.path!r}; set one of the two"
            )


def _text(cell: Cell, path: str) -> Corpus | None:
    """Return the text at a dotted path; None if the cell has no such section."""
    if path.startswith("parent."):
        parent = parent_of(cell)
        return None if parent is None else _text(parent, path.removeprefix("parent."))
    if path == "teacher.pretraining.corpus":
        shipped = Pretraining() if cell.teacher.model == Cell().teacher.model else None
        recipe = cell.teacher.pretraining or shipped
        return None if recipe is None else recipe.corpus
    return cell.evaluation.second_corpus if path == "evaluation.second_corpus" else cell.corpus


_OVERLAPS = ({"python", "python+dependencies"}, {"python+dependencies", "docstrings"})
"""Built-in texts that share text."""


def _same_text(text: Corpus, other: Corpus) -> bool:
    if text.fingerprint and text.fingerprint == other.fingerprint:
        return text.name == other.name
    if any({text.path, other.path} <= pair for pair in _OVERLAPS):
        return True
    return (text.path, text.name, text.text_column) == (other.path, other.name, other.text_column)
