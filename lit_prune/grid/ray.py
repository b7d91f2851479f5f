"""Tasks of Ray Core, on a cluster or on one that this process starts. Workers import the installed package."""

from __future__ import annotations

import dataclasses
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError, Placement
from lit_prune.grid.environment import passed_on
from lit_prune.grid.job import Answer, Job
from lit_prune.grid.tasks import Task

if TYPE_CHECKING:
    from lit_prune.grid.worker import Worker

_PATIENCE = 20.0
"""Seconds that tasks have to end when they are cancelled."""

_workers: dict[str, Worker] = {}
"""Job -> worker of this process, which Ray reuses."""


class RayExecutor:
    """Runs each task as a Ray task with the cores and GPUs of one cell. Ray queues those for which there is no room."""

    def __init__(self, job: Job, placement: Placement) -> None:
        """Connect to a cluster, or start one on this machine.

        Raises:
            ConfigError: if Ray is not installed, the cluster is not there, or none of its nodes has room for a cell.
        """
        try:
            import ray
        except ImportError:
            raise ConfigError("--on ray: Ray is not installed (pip install 'lit-prune[ray]')") from None
        self._ray, threads = ray, job.execution.threads or placement.cpus
        with _own_handlers():
            try:
                ray.init(
                    placement.address, runtime_env={"env_vars": passed_on(threads)}, include_dashboard=False,
                    log_to_driver=False, logging_level="ERROR",
                )  # fmt: skip
            except ConnectionError as error:
                raise ConfigError(f"--address: {' '.join(str(error).split())}") from None
        gpus = placement.gpus
        if gpus is None:
            gpus = job.execution.devices if job.execution.accelerator != "cpu" and _most(ray, "GPU") else 0
        for flag, name, wanted in (("--cpus", "CPU", placement.cpus), ("--gpus", "GPU", gpus)):
            if wanted > _most(ray, name):
                raise ConfigError(f"{flag}: must be at most {_most(ray, name):g}, as on the largest node, got {wanted}")
        execution = dataclasses.replace(job.execution, threads=threads)
        self._job = ray.put(dataclasses.replace(job, execution=execution))
        self._remote = ray.remote(max_retries=0, num_cpus=placement.cpus, num_gpus=gpus)(_compute)
        self._limit, self._queue = placement.jobs, deque[Task]()
        self._running: dict[Any, Task] = {}

    def start(self, tasks: list[Task]) -> None:
        """Run tasks as soon as there are workers for them."""
        self._queue.extend(tasks)
        while self._queue and (self._limit is None or len(self._running) < self._limit):
            task = self._queue.popleft()
            self._running[self._remote.remote(self._job, task)] = task

    def ended(self, seconds: float) -> list[Answer]:
        """Return the tasks that have ended; wait for one for at most `seconds`."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=seconds)
        answers = [self._answer(reference) for reference in ready]
        self.start([])
        return answers

    def stop(self) -> None:
        """End all tasks. They resume from their last checkpoints in a later run."""
        for reference in self._running:
            self._ray.cancel(reference)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_PATIENCE)
        with _own_handlers():
            self._ray.shutdown()

    def _answer(self, reference: Any) -> Answer:
        task = self._running.pop(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()
            return Answer(task, "died", f"{type(error).__name__}: {reason[-1] if reason else 'no message'}")


def _most(ray: Any, name: str) -> float:
    """Return the largest amount of a resource on a living node."""
    return max(node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"])


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep the signal handlers of this process, which Ray replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _compute(job: Job, task: Task) -> Answer:
    """Compute a task in a process of Ray."""
    from lit_prune.grid.worker import Worker

    if job.id not in _workers:
        _workers.clear()  # models of another job
        try:
            _workers[job.id] = Worker(job)
        except ConfigError as error:
            return Answer(task, "invalid", str(error))
    with _workers[job.id] as worker:
        return worker.run(task)
