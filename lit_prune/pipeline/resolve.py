"""Resolve a requested cell to the cell that is hashed: inputs by fingerprint, budgets in steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from lit_prune.config import Cell, Corpus, PruneMethod, Teacher, errors_of, fastest_precision
from lit_prune.config.fields import of_parent
from lit_prune.config.overrides import flatten, override, parent_of, plain_of
from lit_prune.data import corpus
from lit_prune.distill.budget import with_steps
from lit_prune.evaluate.accuracy import pin_tasks
from lit_prune.models import loading
from lit_prune.models.bos import expects_bos

Node = TypeVar("Node")


class Resolver:
    """Fills in fingerprints and steps of cells; reads each text and each model once."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def pin(self, cell: Cell) -> Cell:
        """Return the cell with the fingerprints of its inputs and its budget in steps.

        Raises:
            ConfigError: if a text or a model is missing or unreadable, or a budget is less than a step.
        """
        cell = _with_precision(cell)
        teacher = self._once(cell.teacher, loading.pin)
        evaluation = cell.evaluation
        if evaluation.second_corpus is not None:
            second = self._with_bos(self._once(evaluation.second_corpus, _pin_second), teacher)
            evaluation = dataclasses.replace(evaluation, second_corpus=second)
        if evaluation.tasks is not None:
            evaluation = dataclasses.replace(evaluation, tasks=self._once(evaluation.tasks, pin_tasks))
        pinned = dataclasses.replace(
            cell,
            corpus=self._with_bos(self._once(cell.corpus, corpus.pin), teacher),
            evaluation=evaluation,
            teacher=teacher,
            prune=self._pinned_student(cell.prune),
        )
        requested = dataclasses.replace(pinned, distill=with_steps(cell.distill, lambda: self._flops_of_token(pinned)))
        parent = parent_of(pinned)  # with the requested budget, not its steps
        return requested if parent is None else override(requested, self._filled_in(parent, requested))

    def _pinned_student(self, student: PruneMethod) -> PruneMethod:
        """Return a `prune` section with the fingerprint of what it names, which is read once for all sections."""
        if student.fingerprint or student.plan_path is student.init_from is None:
            return student
        named = "student", student.plan_path, student.init_from
        fingerprint = self._once(named, lambda _: loading.pin_student(student).fingerprint)
        return dataclasses.replace(student, fingerprint=fingerprint)

    def _with_bos(self, text: Corpus, teacher: Teacher) -> Corpus:
        """Return the text with `bos` as the teacher expects it, unless it is set; None also means False."""
        expected = self._once(("bos", teacher), lambda _: _expects_bos(teacher))
        if text.bos is None and expected:
            return dataclasses.replace(text, bos=True)
        return dataclasses.replace(text, bos=None) if text.bos is False and not expected else text

    def _filled_in(self, parent: Cell, requested: Cell) -> dict[str, Any]:
        """Return the fingerprints and steps of a parent that differ from those it inherits."""
        with of_parent():
            found = dict(flatten(plain_of(self.pin(parent)), "parent."))
        inherited = dict(flatten(plain_of(parent_of(requested)), "parent."))
        return {path: value for path, value in found.items() if path not in inherited or value != inherited[path]}

    def _flops_of_token(self, cell: Cell) -> float:
        from lit_prune.pipeline.work import flops_of_token  # imports torch, which a finished table does not need

        distill = dataclasses.replace(cell.distill, max_flops=None)
        without_budget = repr((cell.teacher, cell.parent, cell.prune, distill))  # 1 equals 1.0, but not as text
        return self._once(without_budget, lambda _: flops_of_token(cell))

    def _once(self, section: Any, pin: Any) -> Any:
        if section not in self._known:
            self._known[section] = pin(section)
        return self._known[section]


def _with_precision(node: Node) -> Node:
    """Return a section with every precision "auto" in it replaced by the fastest one of this machine."""
    changed: dict[str, Any] = {}
    for name, value in vars(node).items():
        if name == "precision" and value == "auto":
            changed[name] = fastest_precision()
        elif name == "parent" and value:
            changed[name] = tuple(
                (path, fastest_precision() if path.endswith(".precision") and inside == "auto" else inside)
                for path, inside in value
            )
        elif dataclasses.is_dataclass(value) and (found := _with_precision(value)) is not value:
            changed[name] = found
    return dataclasses.replace(node, **changed) if changed else node  # type: ignore[type-var]


def _expects_bos(teacher: Teacher) -> bool:
    if teacher.model is None:  # a tokenizer trained here adds no begin token
        return False
    place = loading.locate(teacher.model, teacher.fingerprint, weights=False)
    return place.pending.expects_bos if place.pending else expects_bos(Path(place))


def _pin_second(text: Corpus) -> Corpus:
    with errors_of({"corpus": "evaluation.second_corpus"}):
        return corpus.pin(text)
