"""Worker processes on this machine, each with its share of the cores or one GPU. No torch in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from lit_prune.config import ConfigError
from lit_prune.grid.job import Answer, Job, leave_on_sigterm
from lit_prune.grid.tasks import Task

_PATIENCE = 30.0
"""Seconds that workers have to end after SIGTERM."""


@dataclass
class _Seat:
    """A worker process and what it is doing."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None


class LocalExecutor:
    """Runs each task in one of `jobs` processes. A process that dies is replaced when there is work for it."""

    def __init__(self, job: Job, jobs: int, gpus: list[str]) -> None:
        """Create an executor of `jobs` workers, each with the GPUs of one cell or, without GPUs, a share of the cores.

        More workers than there are such groups of GPUs share them.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        devices = job.execution.devices
        threads = job.execution.threads or max(1, cores // (jobs * devices))
        groups = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) + 1 - devices, devices)]
        self._job = dataclasses.replace(job, execution=dataclasses.replace(job.execution, threads=threads))
        self._environments = [_environment(threads, groups, place) for place in range(jobs)]
        self._seats: list[_Seat | None] = [None] * jobs
        self._queue: deque[Task] = deque()
        self._spawn = multiprocessing.get_context("spawn")

    def start(self, tasks: list[Task]) -> None:
        """Run tasks as soon as there are workers for them."""
        self._queue.extend(tasks)
        self._give_out()

    def ended(self, seconds: float) -> list[Answer]:
        """Return the tasks that have ended; wait for one for at most `seconds`."""
        seats = [seat for seat in self._seats if seat is not None]
        events = [event for seat in seats for event in (seat.connection, seat.process.sentinel)]
        ready = wait(events, seconds)
        answers = []
        for place, seat in enumerate(self._seats):
            if seat is not None and (seat.connection in ready or seat.process.sentinel in ready):
                answer = self._answer(seat)
                if answer is None or answer.outcome == "died":
                    self._seats[place] = None
                if answer is not None:
                    answers.append(answer)
        self._give_out()
        return answers

    def stop(self) -> None:
        """End all workers. Their tasks resume from their last checkpoints in a later run."""
        seats = [seat for seat in self._seats if seat is not None]
        for seat in seats:
            seat.process.terminate()
        for seat in seats:
            seat.process.join(_PATIENCE)
            seat.process.kill()
            seat.process.join()

    def _give_out(self) -> None:
        for place, environment in enumerate(self._environments):
            seat = self._seats[place]
            if not self._queue or (seat is not None and seat.task is not None):
                continue
            if seat is None:
                ours, theirs = self._spawn.Pipe()
                process = self._spawn.Process(target=_serve, args=(theirs, self._job, environment))
                process.start()
                theirs.close()
                seat = self._seats[place] = _Seat(process, ours)
            seat.task = self._queue.popleft()
            with contextlib.suppress(OSError):  # it has died, as its sentinel shows
                seat.connection.send(seat.task)

    def _answer(self, seat: _Seat) -> Answer | None:
        """Return the answer of a worker; None if it died without a task."""
        task, seat.task = seat.task, None
        try:
            return seat.connection.recv()
        except (EOFError, OSError):
            seat.process.join(_PATIENCE)
        return None if task is None else Answer(task, "died", _cause(seat.process.exitcode))


def gpus_of(accelerator: str) -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        ConfigError: if the accelerator must be a GPU and there is none.
    """
    import torch

    count = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if accelerator == "gpu" and not count:
        raise ConfigError("--accelerator: must be cpu or auto, as there is no GPU, got gpu")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:count] if count and names != [""] else [str(number) for number in range(count)]


def _environment(threads: int, groups: list[str], place: int) -> dict[str, str]:
    shares = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return shares | ({"CUDA_VISIBLE_DEVICES": groups[place % len(groups)]} if groups else {})


def _cause(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _serve(connection: Connection, job: Job, environment: Mapping[str, str]) -> None:
    """Answer tasks until the driver closes the connection or dies."""
    os.environ.update(environment)  # before torch is imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the driver ends them
    leave_on_sigterm()
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    from lit_prune.grid.worker import Worker

    task: Task = connection.recv()
    try:
        worker = Worker(job)
    except ConfigError as error:
        connection.send(Answer(task, "invalid", str(error)))
        return
    with worker, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(worker.run(task))
            task = connection.recv()


def _follow_the_driver() -> None:
    """End this process when the driver dies."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
