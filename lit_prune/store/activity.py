"""What each process that computes on a store is doing: one small file per process in `store/workers/`. No torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from lit_prune.progress import Progress
from lit_prune.store import lease
from lit_prune.store.atomic import write_json
from lit_prune.store.hosts import Process, is_dead, this_process
from lit_prune.store.store import LEASES, Store

WORKERS = "workers"
"""Folder of the files."""
_SECONDS = 1.0
"""Seconds between two writes of a file."""


@dataclass(frozen=True)
class Activity(Process):
    """What a process is doing."""

    task: str
    """Stage and address that a driver gave to this worker, as in the name of a lease; empty without a driver."""
    what: str
    """The stage at hand with its count, such as "kld, seed 0: step 24/50"."""
    steps: int
    """Optimizer steps of this task so far."""


class Published:
    """Progress that is written to the store for other processes, beside the display that it passes it on to."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store, self._progress, self._process = store, progress, this_process()
        self._path = store.root / WORKERS / f"{self._process.host}-{self._process.pid}.json"
        self._task = self._what = self._count = ""
        self._before, self._written = 0, 0.0

    def __enter__(self) -> Published:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        list(activities(self._store))  # removes the files of processes that were killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def done(self) -> int:
        """Units of work done by this process."""
        return self._progress.done

    def begin(self, task: str, what: str) -> None:
        """Publish that a task begins."""
        self._task, self._what, self._count, self._before = task, what, "", self.done
        self._write(at_once=True)

    def end(self) -> None:
        """Publish that this process does nothing now."""
        self._task = ""
        self._path.unlink(missing_ok=True)

    def say(self, what: str) -> None:
        """Report the current activity."""
        self._progress.say(what)
        self._what, self._count = what, ""
        self._write()

    def at(self, done: int, what: str) -> None:
        """Report that `done` units of work are finished, and the current activity."""
        self._progress.at(done, what)
        self._write()

    def cells(self, done: int, total: int) -> None:
        """Report the numbers of finished cells and of all cells."""
        self._progress.cells(done, total)

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Report the progress of the current stage."""
        self._progress.count(what, done, total, unit)
        self._what, self._count = what, f"{unit} {done:,}" if total is None else f"{unit} {done:,}/{total:,}"
        self._write()

    def _write(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._written < _SECONDS:
            return
        self._written = time.monotonic()
        what = f"{self._what}, {self._count}" if self._count else self._what
        about = Activity(**asdict(self._process), task=self._task, what=what, steps=self.done - self._before)
        with contextlib.suppress(OSError):  # a display must not end a run
            write_json(self._path, asdict(about))


def activities(store: Store) -> Iterator[Activity]:
    """Yield what processes are doing; remove the files of processes of this host that have died."""
    for path in sorted((store.root / WORKERS).glob("*.json")):
        found = _read(path)
        if found is None:
            continue
        if is_dead(found):
            path.unlink(missing_ok=True)
        else:
            yield found


def work_in_progress(store: Store) -> dict[str, str]:
    """Return stage and address -> who computes it since when, and how far, of every lease in the store."""
    doing = {(one.host, one.pid): one.what for one in activities(store)}
    found = {}
    for path in sorted((store.root / LEASES).glob("[!.]*")):
        owner = lease.owner(path)
        if owner is None or is_dead(owner):
            continue
        what = doing.get((owner.host, owner.pid))
        found[path.name] = f"computed by {owner} since {owner.since}" + (f" ({what})" if what else "")
    return found


def _read(path: Path) -> Activity | None:
    try:
        return Activity(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
