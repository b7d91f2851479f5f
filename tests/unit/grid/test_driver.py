"""What the driver does with tasks that end, die, fail, or are held by other processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from refusals import refuses

from lit_prune.config import ConfigError, Execution
from lit_prune.config.overrides import override
from lit_prune.grid.driver import MAX_DEATHS, Driver
from lit_prune.grid.job import Answer, Job
from lit_prune.grid.tasks import Task
from lit_prune.grid.worker import Worker
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store
from lit_prune.store.activity import activities, work_in_progress
from lit_prune.store.hosts import this_process


class Scripted:
    """An executor of one worker whose tasks end as `work` says."""

    def __init__(self, work: Callable[[Task], Answer]) -> None:
        self.work, self.queue, self.started, self.stopped = work, [], [], False

    def start(self, tasks: list[Task]) -> None:
        self.queue += tasks

    def ended(self, seconds: float) -> list[Answer]:
        if not self.queue:
            return []
        task = self.queue.pop(0)
        self.started.append(task.name)
        return [self.work(task)]

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def entries(tiny_cell) -> list[Entry]:
    cell = override(tiny_cell, {"prune.hidden_size": 0.5, "distill.max_steps": 2})
    return [Entry(f"row {seed}", seed, override(cell, {"seed": seed}), {}) for seed in range(3)]


def finish(store: Store, task: Task) -> Answer:
    with store.claim(task.entry.cell, task.stage) as node:
        node.finish({"lm_loss": 1.0})
    return Answer(task, "done")


def drive(runner, entries, work) -> tuple[int, Scripted, Driver]:
    executor = Scripted(work)
    planned = [entry for wave in runner.expect(entries) for entry in wave]
    driver = Driver(runner, executor, planned)
    failed = driver.run()
    assert executor.stopped
    return failed, executor, driver


def test_shared_stages_come_first_and_each_address_is_given_out_once(entries, tiny_runner):
    failed, executor, _ = drive(tiny_runner, entries, lambda task: finish(tiny_runner.store, task))
    assert failed == 0
    assert [name.partition("-")[0] for name in executor.started] == ["student", "cell", "cell", "cell"]
    assert len(set(executor.started)) == 4


def test_a_task_whose_worker_dies_is_given_to_another_and_fails_after_the_stated_number(entries, tiny_runner):
    deadly = f"cell-{entries[1].key}"

    def work(task: Task) -> Answer:
        return Answer(task, "died", "signal SIGKILL") if task.name == deadly else finish(tiny_runner.store, task)

    failed, executor, _ = drive(tiny_runner, entries, work)
    assert failed == 1
    assert executor.started.count(deadly) == MAX_DEATHS
    node = tiny_runner.store.node(entries[1].cell, "cell")
    assert node.error == f"{MAX_DEATHS} workers died at it, the last by signal SIGKILL"


def test_cells_fail_with_the_shared_stage_that_they_need(entries, tiny_runner):
    def work(task: Task) -> Answer:
        task.node(tiny_runner.store).fail("no room")
        return Answer(task, "failed")

    failed, executor, _ = drive(tiny_runner, entries, work)
    assert failed == 3
    assert len(executor.started) == 1
    assert {tiny_runner.store.node(entry.cell, "cell").error for entry in entries} == {"no room"}


def test_a_cell_that_another_process_holds_is_waited_for(entries, tiny_runner):
    """It is given out when that process leaves it unfinished, and not if that finishes it."""
    store, seen = tiny_runner.store, []
    with store.claim(entries[0].cell, "student") as node:
        node.finish({})
    with store.claim(entries[0].cell, "cell") as first:
        with store.claim(entries[1].cell, "cell"):

            def work(task: Task) -> Answer:
                seen.append(task.name)
                return finish(store, task)

            executor = Scripted(work)
            driver = Driver(tiny_runner, executor, [e for wave in tiny_runner.expect(entries) for e in wave])
            driver._start()
            assert list(driver.running) == [f"cell-{entries[2].key}"]
        first.finish({"lm_loss": 7.0})
    assert driver.run() == 0
    assert sorted(seen) == sorted([f"cell-{entries[1].key}", f"cell-{entries[2].key}"])
    assert store.node(entries[0].cell, "cell").result == {"lm_loss": 7.0}


def test_an_invalid_request_ends_the_run(entries, tiny_runner):
    with pytest.raises(ConfigError, match="weights are NaN"):
        drive(tiny_runner, entries, lambda task: Answer(task, "invalid", "weights are NaN"))


def test_a_worker_of_other_code_refuses(entries, tmp_path):
    job = Job(tuple(entries), str(tmp_path), Execution(), "disabled", "toy")
    with refuses("", "has other source files"):
        Worker(dataclasses.replace(job, code="0" * 12))


def test_a_worker_computes_what_one_process_computes_and_status_says_who(entries, tiny_runner, tmp_path):
    execution = dataclasses.replace(tiny_runner.execution, cpu="plain")
    job = Job(tuple(entries), str(tmp_path / "other"), execution, "disabled", "toy")
    with Worker(job) as worker:
        assert worker.run(Task("student", entries[0])).outcome == "done"
        assert worker.run(Task("cell", entries[0])).outcome == "done"
        with job.opened().claim(entries[1].cell, "cell") as node:
            assert worker.run(Task("cell", entries[1])).outcome == "busy"
            (text,) = work_in_progress(job.opened()).values()
            assert text.startswith(f"computed by process {this_process().pid} on {this_process().host} since ")
            assert node.result is None
    assert list(activities(job.opened())) == []
    assert tiny_runner.run(entries[:1]) == 0
    ours, theirs = (store.node(entries[0].cell, "cell") for store in (tiny_runner.store, job.opened()))
    assert ours.result == theirs.result
    weights = "model/model.safetensors"
    assert (ours.folder / weights).read_bytes() == (theirs.folder / weights).read_bytes()
