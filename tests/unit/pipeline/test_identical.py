"""Students that are identical are measured once, if they are not retrained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.evaluate import perplexity
from lit_prune.pipeline.costs import runs_of
from lit_prune.pipeline.expand import Entry
from lit_prune.report.results_frame import found_of
from lit_prune.store import Node
from lit_prune.store.store import IDENTICAL, SEQUENCES, commits_of

TAIL = {
    **dict.fromkeys(("prune.hidden_size", "prune.intermediate_size", "prune.num_attention_heads")),
    "prune.num_hidden_layers": 0.5, "prune.layer_selection": "last", "distill.max_steps": 0,
}  # fmt: skip
"""The last layers are dropped, whatever the calibration sequences are."""
SPEED = {f"evaluation.throughput.{name}": 2 for name in ("prompt_len", "max_new_tokens", "num_repeats", "batch_size")}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that returns the number of students measured since its last call."""
    seen: list[int] = []
    losses = perplexity.sequence_losses
    monkeypatch.setattr(perplexity, "sequence_losses", lambda *words: seen.append(1) or losses(*words))

    def counted() -> int:
        number = len(seen)
        seen.clear()
        return number

    return counted


def cells(cell: Cell, **changes: Any) -> list[Entry]:
    """Two draws of calibration sequences of one row."""
    rows = override(cell, TAIL | changes)
    return [Entry("row", seed, override(rows, {"calibration.seed": seed, "seed": seed}), {}) for seed in (0, 1)]


def nodes(runner: Any, entries: list[Entry]) -> list[Node]:
    assert runner.run(entries) == 0
    return [entry.node(runner.store) for entry in entries]


def test_the_second_draw_takes_the_results_of_the_first_over(tiny_cell, tiny_runner, measured):
    first, second = nodes(tiny_runner, cells(tiny_cell))
    assert measured() == 1
    assert first.key != second.key
    assert first.result == second.verified
    pd.testing.assert_frame_equal(*(pd.read_parquet(node.folder / SEQUENCES) for node in (first, second)))
    assert IDENTICAL not in first.env
    assert second.env[IDENTICAL] == {"cell": first.key, "commits": commits_of(first.env)}


def test_a_result_taken_over_tells_nothing_about_time_or_memory(tiny_cell, tiny_runner):
    first, second = nodes(tiny_runner, cells(tiny_cell))
    found = [found_of(["lm_loss"], node) for node in (first, second)]
    assert [one["wall_seconds"] for one in found] == [first.env["seconds"], None]
    assert second.env["peak_memory"] is None
    assert runs_of(tiny_runner.store) == [(0.0, first.env["seconds"])]


@pytest.mark.parametrize(
    "changes",
    [
        {"distill.max_steps": 2},
        {"prune.num_hidden_layers": 1.0, "prune.hidden_size": 0.5, "prune.width_criterion": "random"},
        SPEED,
    ],
    ids=["retrained", "other weights", "speed is measured"],
)
def test_others_are_measured_each(changes, tiny_cell, tiny_runner, measured):
    found = nodes(tiny_runner, cells(tiny_cell, **changes))
    assert measured() == 2
    assert not any(IDENTICAL in node.env for node in found)


def test_another_test_of_the_same_student_is_another_measurement(tiny_cell, tiny_runner, measured):
    nodes(tiny_runner, cells(tiny_cell) + cells(tiny_cell, **{"evaluation.num_sequences": 3}))
    assert measured() == 2


def test_a_student_is_measured_again_when_the_cell_that_measured_it_is_gone(tiny_cell, tiny_runner, measured):
    (first,) = nodes(tiny_runner, cells(tiny_cell)[:1])
    shutil.rmtree(first.folder)
    (second,) = nodes(tiny_runner, cells(tiny_cell)[1:])
    assert measured() == 2
    (first,) = nodes(tiny_runner, cells(tiny_cell)[:1])
    assert measured() == 0
    assert first.env[IDENTICAL]["cell"] == second.key
