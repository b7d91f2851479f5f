"""Pruned students that would fill the disk are removed after use, and cut again."""

from __future__ import annotations

from typing import Any

import pytest

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.pipeline import students
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.progress import Silent
from lit_prune.store import Store


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that any student fills."""
    monkeypatch.setattr(students, "_SHARE", 0.0)


def entry(cell: Cell, **changes: Any) -> Entry:
    return Entry(str(changes), 0, override(cell, changes), {})


def half(cell: Cell, steps: int) -> Entry:
    return entry(cell, **{"prune.intermediate_size": 0.5, "distill.max_steps": steps})


def student_of(store: Store, one: Entry) -> dict[str, Any] | None:
    return store.node(one.cell, "student").verified


@pytest.mark.usefixtures("full")
def test_a_student_goes_after_the_last_cell_that_needs_it_and_comes_back(tiny_cell: Cell, tiny_runner: Any) -> None:
    store, there = tiny_runner.store, []

    class Looking(Silent):
        def cells(self, done: int, total: int) -> None:
            there.append((done, student_of(store, half(tiny_cell, 0)) is not None))

    runner = Runner(store, tiny_runner.execution, Looking())
    assert runner.run([half(tiny_cell, 0), half(tiny_cell, 2)]) == 0
    assert there == [(0, False), (1, True), (2, False)]
    expected = store.node(half(tiny_cell, 0).cell, "cell").result
    store.remove(store.node(half(tiny_cell, 0).cell, "cell").folder)
    assert tiny_runner.run([half(tiny_cell, 0)]) == 0
    assert store.node(half(tiny_cell, 0).cell, "cell").result == expected


@pytest.mark.usefixtures("full")
def test_a_student_that_was_there_before_the_run_stays(tiny_cell: Cell, tiny_runner: Any) -> None:
    tiny_runner.ctx.get("student", half(tiny_cell, 0).cell)
    assert tiny_runner.run([half(tiny_cell, 0)]) == 0
    assert student_of(tiny_runner.store, half(tiny_cell, 0)) is not None


@pytest.mark.parametrize("reason", ["room", "wanted"])
def test_students_stay_where_there_is_room_or_they_are_wanted(
    tiny_cell: Cell, tiny_runner: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "wanted":
        monkeypatch.setattr(students, "_SHARE", 0.0)
    runner = Runner(tiny_runner.store, tiny_runner.execution, Silent(), keep_students=reason == "wanted")
    assert runner.run([half(tiny_cell, 0)]) == 0
    assert student_of(tiny_runner.store, half(tiny_cell, 0)) is not None
