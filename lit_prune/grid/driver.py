"""The driver of a run: gives out tasks in order, never one address to two workers, and displays their progress."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from lit_prune.config import ConfigError
from lit_prune.grid.job import Answer, Executor
from lit_prune.grid.tasks import Task, tasks_of
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.store import lease
from lit_prune.store.activity import activities

MAX_DEATHS = 3
"""Workers that may die at one task before it counts as failed."""
_SECONDS = 1.0
"""Seconds between looks at the store."""


class Driver:
    """Carries out the tasks of a run with an executor."""

    def __init__(self, runner: Runner, executor: Executor, entries: list[Entry]) -> None:
        """Plan the tasks of `entries`, which `runner` expects; parents come before the cells cut from them."""
        self.runner, self.store, self.executor = runner, runner.store, executor
        self.progress, self.entries = runner.ctx.progress, entries
        self.waiting = {task.name: task for task in tasks_of(self.store, entries)}
        self.running: dict[str, Task] = {}
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        """Task -> why it failed."""
        self._deaths = Counter[str]()
        self._held: set[str] = set()
        self._last_text = ""

    def run(self) -> int:
        """Return how many cells failed, once every task is done or has failed.

        Raises:
            ConfigError: if the computation shows that the request is invalid.
        """
        try:
            while self.waiting or self.running:
                self._start()
                began = time.monotonic()
                for answer in self.executor.ended(_SECONDS):
                    self._take(answer)
                if not self.running:  # all that is left is held by other processes
                    time.sleep(max(0.0, _SECONDS - (time.monotonic() - began)))
                self._show()
        finally:
            self.executor.stop()
        return sum(name.startswith("cell-") for name in self.failed)

    def _start(self) -> None:
        """Start the tasks whose needs are met and whose address no other process holds."""
        for task in list(self.waiting.values()):
            failed = next((self.failed[name] for name in sorted(task.needs) if name in self.failed), None)
            if failed is not None:
                self._fail(task, failed)
        startable = [task for task in self._ready() if not self._is_elsewhere(task)]
        for task in startable:
            self.running[task.name] = self.waiting.pop(task.name)
        if startable:
            self.executor.start(startable)

    def _ready(self) -> Iterator[Task]:
        open_tasks = self.waiting.keys() | self.running.keys()
        return (task for task in list(self.waiting.values()) if not (task.needs | task.after) & open_tasks)

    def _is_elsewhere(self, task: Task) -> bool:
        """Return whether another process computes a task, or has done so meanwhile."""
        path = self.store.lease_of(task.stage, task.node(self.store).key)
        if lease.is_held(path):
            if task.name not in self._held:
                self._held.add(task.name)
                self.progress.say(f"{task.title}: waiting for {lease.owner(path) or 'the process'} that computes it")
            return True
        if task.name in self._held and task.node(self.store).result is not None:
            self._finish(task)
            return True
        return False

    def _take(self, answer: Answer) -> None:
        """Note how a task ended."""
        task = answer.task
        self.running.pop(task.name)
        if answer.outcome == "invalid":
            raise ConfigError(answer.message)
        if answer.outcome == "done":
            self._finish(task)
        elif answer.outcome == "failed":
            self._fail(task, task.node(self.store).error or "failed")
        else:
            self.waiting[task.name] = task
            self._held.add(task.name)
            if answer.outcome == "died":
                self._count_death(task, answer.message)

    def _count_death(self, task: Task, cause: str) -> None:
        self._deaths[task.name] += 1
        if self._deaths[task.name] == MAX_DEATHS:
            self._fail(task, f"{MAX_DEATHS} workers died at it, the last by {cause}")
        else:
            self.progress.say(f"{task.title}: its worker died ({cause}); another one takes it on")

    def _finish(self, task: Task) -> None:
        self.waiting.pop(task.name, None)
        self.done.add(task.name)
        self._release(task)

    def _fail(self, task: Task, why: str) -> None:
        self.waiting.pop(task.name, None)
        self.failed[task.name] = why
        node = task.node(self.store)
        if node.error is None:
            with contextlib.suppress(OSError):  # a full disk has no room for the message either
                node.fail(why)
        self.progress.say(f"{task.title} failed: {why} ({node.folder})")
        self._release(task)

    def _release(self, task: Task) -> None:
        if task.stage == "cell":
            self.runner.release(task.entry)

    def _show(self) -> None:
        """Display what the workers of this run are doing."""
        ended = self.done | self.failed.keys()
        cells = {f"cell-{entry.key}": entry.cell.distill.max_steps for entry in self.entries}
        self.progress.cells(sum(name in ended for name in cells), len(cells))
        now = [one for one in activities(self.store) if one.task in self.running]
        steps = sum(steps for name, steps in cells.items() if name in ended) + sum(one.steps for one in now)
        text = " | ".join(one.what for one in now)
        if text and text != self._last_text:
            self.progress.at(steps, text)
            self._last_text = text
