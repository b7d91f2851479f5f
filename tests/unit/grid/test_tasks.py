"""Which tasks a table has, and what each waits for."""

from __future__ import annotations

import itertools

import pytest

from lit_prune.config import Cell, Corpus, Finetuning, Pretraining, Teacher
from lit_prune.config.overrides import override, parent_of
from lit_prune.grid.tasks import tasks_of
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.schedule import waves
from lit_prune.store import Store
from lit_prune.store.address import key

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def planned(store: Store, *cells: Cell):
    entries = [Entry(f"row {number}", 0, cell, {}) for number, cell in enumerate(cells)]
    return tasks_of(store, [entry for wave in waves(store, entries) for entry in wave])


def name(cell: Cell, stage: str) -> str:
    return f"{stage}-{key(cell, stage)}"


def test_cells_that_share_a_student_wait_for_one_task_that_prunes_it(store):
    cells = [override(CELL, {"seed": seed}) for seed in range(3)]
    student, *rest = planned(store, *cells)
    assert student.name == name(CELL, "student")
    assert not student.needs | student.after
    assert [task.name for task in rest] == [name(cell, "cell") for cell in cells]
    assert all(task.needs == {student.name} for task in rest)


def test_students_of_one_calibration_set_wait_for_the_first_which_collects_for_all(store):
    cells = [override(CELL, {"prune.seq_aggregation": how}) for how in ("mean", "l2", "var")]
    students = [task for task in planned(store, *cells) if task.stage == "student"]
    assert [task.after for task in students] == [frozenset(), {students[0].name}, {students[0].name}]
    elsewhere = override(CELL, {"calibration.seed": 5})
    assert [task.after for task in planned(store, CELL, elsewhere) if task.stage == "student"] == [frozenset()] * 2


def test_a_teacher_is_pretrained_then_fine_tuned_then_pruned(store):
    text = Corpus(fingerprint="0" * 64)
    trained = override(
        CELL, {"teacher": Teacher(pretraining=Pretraining(corpus=text), finetune=Finetuning(max_steps=5))}
    )
    tasks = planned(store, trained)
    assert [task.stage for task in tasks] == ["teacher", "correction", "student", "cell"]
    assert [len(task.needs) for task in tasks] == [0, 1, 1, 2]
    for earlier, later in itertools.pairwise(tasks):
        assert earlier.name in later.needs


def test_a_parent_is_computed_before_the_student_that_is_cut_from_it(store):
    child = override(CELL, {"parent": {}, "prune.hidden_size": 0.5, "seed": 1})
    tasks = {task.name: task for task in planned(store, child)}
    parent = parent_of(child)
    assert list(tasks) == [name(parent, "student"), name(parent, "cell"), name(child, "student"), name(child, "cell")]
    assert tasks[name(child, "student")].needs == {name(parent, "cell")}


def test_what_is_done_is_no_task(store):
    for stage in ("student", "cell"):
        with store.claim(CELL, stage) as node:
            node.finish({})
    other = override(CELL, {"seed": 1})
    (task,) = planned(store, CELL, other)
    assert (task.name, task.needs) == (name(other, "cell"), frozenset())
