"""Use as many threads as there are idle cores, and threads that wait without spinning. No torch at import.

With more threads than free cores, all threads wait for the slowest at every step: with another busy process on two
cores, a step took 2.2 times as long on two threads as on one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""Fields of `psutil.cpu_times` that count as busy; `user` includes the time of guests."""


class _Moment(NamedTuple):
    """Readings of three clocks in seconds."""

    wall: float
    machine: float
    """CPU time of all processes on all cores."""
    own: float


_since: _Moment | None = None


def share_the_machine() -> None:
    """Make waiting OpenMP threads sleep early instead of spinning; call it before torch is imported.

    Without this setting, with other busy processes on two cores, a distillation step took 1.5 to 2.6 times as long
    (medians of 12 steps, three shapes).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    watch()


def watch() -> None:
    """Start measuring the CPU use of other processes for `switch`; a load average would lag by a minute."""
    global _since
    _since = _since or _now()


def switch(auto: bool, requested: int | None) -> int:
    """Set torch's threads to `requested`, or with `auto` to the number of idle cores; return the number of threads.

    `auto` does not override the environment variable OMP_NUM_THREADS.
    """
    import torch

    if requested is not None:
        torch.set_num_threads(requested)
    elif auto and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(idle(torch.get_num_threads(), neighbours()))
    return torch.get_num_threads()


def idle(cores: int, busy: float) -> int:
    """Return the number of idle cores, at least one."""
    return min(cores, max(1, cores - round(busy)))


def neighbours() -> float:
    """Return the mean number of cores that other processes used since `watch`; 0 if it cannot be measured."""
    now = _now()
    if _since is None or now is None or now.wall - _since.wall < 0.1:
        return 0.0
    others = now.machine - _since.machine - (now.own - _since.own)
    return max(0.0, others / (now.wall - _since.wall))


@contextmanager
def alone() -> Iterator[None]:
    """Use one torch thread inside `with`, so that timings exclude waiting for other threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> _Moment | None:
    """Return the clocks; None if they cannot be read, as in some containers."""
    import psutil

    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError, ValueError):
        return None
    busy = sum(getattr(times, name, 0.0) for name in _BUSY)  # macOS has only some of them
    return _Moment(time.monotonic(), busy, time.process_time())
