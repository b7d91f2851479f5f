"""Cells of six steps, and a count of teacher forward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.distill.teacher import FrozenTeacher


@pytest.fixture
def base(tiny_cell: Cell) -> Cell:
    """A cell of six steps, of half the channels of the tiny teacher."""
    return override(tiny_cell, {"distill.max_steps": 6, "prune.hidden_size": 0.5})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that returns the number of forward passes of teachers since its last call."""
    seen: list[int] = []
    observe = FrozenTeacher.observe
    monkeypatch.setattr(FrozenTeacher, "observe", lambda *arguments: seen.append(1) or observe(*arguments))

    def counted() -> int:
        number = len(seen)
        seen.clear()
        return number

    return counted
