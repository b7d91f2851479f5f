"""Start the ranks above 0 for one computation, and end all of them if one fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from lit_prune.config import ConfigError
from lit_prune.parallel.group import joined
from lit_prune.store.failures import failure_of

Found = TypeVar("Found")

_HOST = "127.0.0.1"
_PATIENCE = 1.0
"""Seconds to wait for the end of a rank that has broken a connection."""
_FAREWELL = 60.0
"""Seconds that the other ranks may take to end after rank 0."""


class RankFailed(RuntimeError):
    """A rank above 0 has failed, and the computation with it."""


class _Report(NamedTuple):
    """The failure of a rank."""

    at: float
    type: str
    error: str


class _Follower(NamedTuple):
    """The process of a rank above 0."""

    rank: int
    process: Any
    reports: Any
    """The end of a pipe: None once the rank is ready, later a `_Report` if it fails."""


def check_devices(devices: int, accelerator: str) -> None:
    """Check that this machine has as many devices as are to compute together.

    Raises:
        ConfigError: if it has not.
    """
    if devices < 1:
        raise ConfigError(f"--devices: must be at least 1, got {devices}")
    gpus = torch.cuda.device_count() if accelerator != "cpu" else 0
    if 0 < gpus < devices:
        raise ConfigError(f"--devices: must be <= {gpus}, the GPUs of this machine, got {devices}")


def together(
    ours: Callable[[], Found], theirs: Callable[..., Any], arguments: tuple[Any, ...], *, world: int, gpu: bool,
    start_method: str = "spawn",
) -> Found:  # fmt: skip
    """Return `ours()` of this process, rank 0, while the other ranks call `theirs(*arguments)` in new processes.

    With the start method "spawn" the function must be importable and the arguments picklable. The ranks share the
    threads of this process.

    Raises:
        RankFailed: if another rank fails first or is killed.
    """
    store = distributed.TCPStore(_HOST, 0, world, is_master=True, wait_for_workers=False)
    call = store.port, gpu, theirs, arguments
    with _sharing_threads(world), _following(world, start_method, call) as followers:
        for follower in followers:
            if not _ready(follower):
                raise RankFailed(f"rank {follower.rank} of {world} could not start ({_end_of(follower)})")
        with joined(store, 0, world, gpu=gpu), _aborting(followers, gpu):
            try:
                found = ours()
            except Exception as error:
                cause = _earlier(followers, time.time())
                if cause is None or cause.type == type(error).__name__:
                    raise
                raise RankFailed(cause.error) from error
        for follower in followers:
            follower.process.join(_FAREWELL)
        return found


@contextlib.contextmanager
def _sharing_threads(world: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // world))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _following(world: int, start_method: str, call: tuple[Any, ...]) -> Iterator[list[_Follower]]:
    """Start the other ranks; at the end of `with` none is left."""
    context: Any = multiprocessing.get_context(start_method)
    followers = []
    try:
        for rank in range(1, world):
            reports, own = context.Pipe(duplex=False)
            arguments = rank, world, torch.get_num_threads(), own, *call
            process = context.Process(target=_follow, args=arguments, name=f"rank {rank}")
            process.start()
            own.close()  # so that the pipe ends with the process
            followers.append(_Follower(rank, process, reports))
        yield followers
    finally:
        for follower in followers:
            follower.process.kill()  # does nothing to one that has ended
            follower.process.join()


def _follow(
    rank: int, world: int, threads: int, reports: Any, port: int, gpu: bool, theirs: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    """Be a rank above 0 until `theirs` returns; report a failure before the group breaks up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 gets it too, and ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    store = distributed.TCPStore(_HOST, port, world, is_master=False)
    reports.send(None)
    with joined(store, rank, world, gpu=gpu):
        try:
            theirs(*arguments)
        except BaseException as error:
            text = f"rank {rank} of {world}: {failure_of(error).error}"
            reports.send(_Report(time.time(), type(error).__name__, text))
            raise SystemExit(1) from None


def _end_with_parent() -> None:
    """End this process with rank 0, also if that is killed while this one waits for it in a collective."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _ready(follower: _Follower) -> bool:
    try:
        return follower.reports.recv() is None
    except EOFError:
        return False


def _earlier(followers: list[_Follower], moment: float) -> _Report | None:
    """Return the first failure of another rank before the moment at which this one failed, if there is one."""
    ended = connection.wait([follower.process.sentinel for follower in followers], timeout=_PATIENCE)
    found = []
    for follower in followers:
        if follower.process.sentinel in ended:
            follower.process.join(_PATIENCE)  # its exit code comes a moment later
        if follower.reports.poll():
            with contextlib.suppress(EOFError):
                found.append(follower.reports.recv())
        if (follower.process.exitcode or 0) < 0:
            text = f"rank {follower.rank} of {len(followers) + 1} {_end_of(follower)}"
            found.append(_Report(0.0, "Killed", text))
    return min((report for report in found if report.at <= moment), default=None)


def _ended_badly(follower: _Follower) -> bool:
    follower.process.join(_PATIENCE)
    return bool(follower.process.exitcode)


def _end_of(follower: _Follower) -> str:
    follower.process.join(_PATIENCE)
    code = follower.process.exitcode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _aborting(followers: list[_Follower], gpu: bool) -> Iterator[None]:
    """On GPUs, end the collectives of this rank when another one fails; gloo does so by itself."""
    if not gpu:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        left = {follower.process.sentinel: follower for follower in followers}
        while left and not over.is_set():
            for sentinel in connection.wait(list(left), timeout=_PATIENCE):
                if _ended_badly(left.pop(sentinel)):
                    distributed.distributed_c10d._abort_process_group()
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
