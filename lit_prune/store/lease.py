"""Leases: files that one process at a time holds, on any file system that several hosts share. No torch.

`flock` is no lock on Lustre, GPFS and some NFS mounts, which grant it to every host. A lease is a file that appears
complete, by a hard link, and that names its owner: host, process and its start time, and a token. Its owner refreshes
it. A contender takes it over if the owner is dead, which processes of the same host see at once, or if the file has
not changed for `SECONDS` of the contender's own monotonic clock, so that clocks of hosts are never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_prune.store.environment import now
from lit_prune.store.hosts import Process, is_dead, this_process

SECONDS = 120.0
"""Seconds without a heartbeat after which a lease of another host is taken over."""
HEARTBEAT = 15.0
"""Seconds between heartbeats."""
_POLL = 0.2


class Locked(RuntimeError):
    """Another process holds the lease."""


@dataclass(frozen=True)
class Owner(Process):
    """The content of a lease."""

    token: str
    since: str
    """When it was taken, in UTC by the owner's clock."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _Seen:
    """A lease file as one contender reads it."""

    owner: Owner | None
    """None if the file is unreadable, as after a power failure."""
    change: tuple[int, int]
    """Inode and time of the last heartbeat; only whether they change matters."""

    @property
    def token(self) -> str:
        """Name of the file's successor: its token, or its inode if it has none."""
        return self.owner.token if self.owner else str(self.change[0])


_watched: dict[Path, tuple[_Seen, float]] = {}
"""Lease -> its content at its last change, and when this process saw that change first."""


class Lease:
    """A lease that this process may take. `what` names it in messages."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._token, self._released = secrets.token_hex(8), threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lease of {what}", daemon=True)

    def take(self) -> bool:
        """Take the lease if it is free or its owner is gone; return whether this process holds it now."""
        seen = _current(self.path)
        if seen is not None and not _is_gone(self.path, seen):
            return False
        scratch = self.path.with_name(f".{self.path.name}.{self._token}")
        try:
            scratch.write_text(json.dumps(asdict(Owner(**asdict(this_process()), token=self._token, since=now()))))
            # A lease has one successor, decided by a link that cannot be made twice.
            link = self.path if seen is None else _successor(self.path, seen)
            if not _linked(scratch, link):
                return False
            if seen is not None:
                if not self._is_ours():  # another contender has been its successor and swept that link away
                    link.unlink()
                    return False
                os.replace(scratch, self.path)
        finally:
            scratch.unlink(missing_ok=True)
        for left in self.path.parent.glob(f".{self.path.name}.*"):  # of processes that died while they took it
            if left.name != f".{self.path.name}.after-{self._token}":
                left.unlink(missing_ok=True)
        _watched.pop(self.path, None)
        self._heart.start()
        return True

    def check(self) -> None:
        """Check that no other process has taken the lease over, as happens after a suspension of `SECONDS`.

        Raises:
            Locked: if one has.
        """
        if not self._is_ours():
            raise Locked(f"{self.what}: this process was out of reach for {SECONDS:.0f} s, and another one took over")

    def release(self) -> None:
        """Give up the lease, unless another process has taken it over."""
        self._released.set()
        self._heart.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        seen = _current(self.path)
        return seen is not None and seen.token == self._token

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a server that is away for a moment
                if not self._is_ours():
                    return
                os.utime(self.path)


@contextlib.contextmanager
def hold(path: Path, what: str, *, wait: bool) -> Iterator[Lease]:
    """Hold the lease at `path`, whose folder exists; `what` names it in messages.

    Raises:
        Locked: if another process holds it and `wait` is False.
    """
    lease = Lease(path, what)
    while not lease.take():
        if not wait:
            raise Locked(f"{what} is being computed by {owner(path) or 'another process'}")
        time.sleep(_POLL)
    try:
        yield lease
    finally:
        lease.release()


def owner(path: Path) -> Owner | None:
    """Return the owner that the lease at `path` names, dead or alive; None without a readable lease."""
    seen = _current(path)
    return seen.owner if seen else None


def is_held(path: Path) -> bool:
    """Return whether a process holds the lease at `path` and has not been silent while this process watched it."""
    seen = _current(path)
    return seen is not None and not _is_gone(path, seen)


def _current(path: Path) -> _Seen | None:
    """Return the lease that counts: that at `path`, or the last of its successors, which moves there."""
    seen = _read(path)
    while seen is not None and (after := _read(_successor(path, seen))) is not None:
        seen = after
    return seen


def _successor(path: Path, seen: _Seen) -> Path:
    return path.with_name(f".{path.name}.after-{seen.token}")


def _read(path: Path) -> _Seen | None:
    try:
        with path.open() as file:  # opening asks the server, where a plain stat may be answered from a cache
            state, text = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return None
    try:
        found = Owner(**json.loads(text))
    except (ValueError, TypeError):
        found = None
    return _Seen(found, (state.st_ino, state.st_mtime_ns))


def _is_gone(path: Path, seen: _Seen) -> bool:
    """Return whether the owner of a lease is dead, or silent for `SECONDS` while this process watched."""
    if seen.owner is not None and (dead := is_dead(seen.owner)) is not None:
        return dead
    before, since = _watched.get(path, (None, 0.0))
    if before != seen:
        _watched[path] = seen, time.monotonic()
        return False
    return time.monotonic() - since >= SECONDS


def _linked(scratch: Path, target: Path) -> bool:
    """Give a file a second name, unless the name exists; return whether it has it now."""
    try:
        os.link(scratch, target)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(scratch).st_nlink == 2  # NFS may lose the answer to a link that it made
        return False
    except FileNotFoundError:  # the scratch file was swept away by the process that got the lease
        return False
    return True
