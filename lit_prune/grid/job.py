"""What every worker of a run needs to know, and the answers it gives. No torch."""

from __future__ import annotations

import functools
import hashlib
import secrets
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lit_prune.config import Execution
from lit_prune.grid.tasks import Task
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store

Outcome = Literal["done", "failed", "busy", "invalid", "died"]
"""How a task ended. Busy: another process holds its address. Invalid: the request or the worker's code is wrong, so
that no other task can succeed. Died: the worker was killed or lost."""


@functools.cache
def code() -> str:
    """Return a digest of the source files of this package, so that workers of other code are recognised."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def leave_on_sigterm() -> None:
    """Let SIGTERM end a worker by an exception, so that it releases its leases; its work resumes from a checkpoint."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@dataclass(frozen=True)
class Job:
    """One run of a table."""

    entries: tuple[Entry, ...]
    """The cells of the run, of which a task computes one."""
    store: str
    execution: Execution
    wandb: Literal["auto", "online", "offline", "disabled"]
    table: str
    code: str = field(default_factory=code)
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    def opened(self) -> Store:
        """Return the store."""
        return Store(self.store)


@dataclass(frozen=True)
class Answer:
    """How a task ended."""

    task: Task
    outcome: Outcome
    message: str = ""
    """Why it is invalid, or how its worker died."""


class Executor(Protocol):
    """Runs tasks in other processes. The store has their results."""

    def start(self, tasks: list[Task]) -> None:
        """Run tasks as soon as there are workers for them."""

    def ended(self, seconds: float) -> list[Answer]:
        """Return the tasks that have ended; wait for one for at most `seconds`."""

    def stop(self) -> None:
        """End all workers. Their tasks resume from their last checkpoints in a later run."""
