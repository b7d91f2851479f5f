"""As many threads as there are idle cores, and threads that wait without holding a core. No torch at import.

A thread more than there are cores free makes all others wait at every step: with one busy neighbour on two cores a step
took 2.2 times as long on two threads as on one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""Fields of `psutil.cpu_times` in which a core does work; a guest's time is in that of its user."""


class _Moment(NamedTuple):
    """Seconds on three clocks."""

    wall: float
    machine: float
    """Of processor time on all cores, of all processes."""
    own: float


_since: _Moment | None = None


def share_the_machine() -> None:
    """Let threads that wait for each other sleep early; must come before torch is imported.

    OpenMP's threads spin by default. With busy neighbours on two cores a distillation step took 1.5 to 2.6 times as
    long as with this setting (medians of 12 steps, three shapes).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    watch()


def watch() -> None:
    """Begin to look at how busy the neighbours are; `switch` reads it. A load average would lag by a minute."""
    global _since
    _since = _since or _now()


def switch(auto: bool, asked: int | None) -> int:
    """Set torch's threads to what is `asked`, or to the idle cores where it is `auto`; returns their number.

    A user's OMP_NUM_THREADS is left as it is.
    """
    import torch

    if asked is not None:
        torch.set_num_threads(asked)
    elif auto and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(idle(torch.get_num_threads(), neighbours()))
    return torch.get_num_threads()


def idle(cores: int, busy: float) -> int:
    """Return the cores that are left, at least one."""
    return min(cores, max(1, cores - round(busy)))


def neighbours() -> float:
    """Cores that other processes kept busy since `watch`; 0 where the system does not say."""
    now = _now()
    if _since is None or now is None or now.wall - _since.wall < 0.1:
        return 0.0
    others = now.machine - _since.machine - (now.own - _since.own)
    return max(0.0, others / (now.wall - _since.wall))


@contextmanager
def alone() -> Iterator[None]:
    """One thread inside `with`: what is timed there is not the wait for another one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> _Moment | None:
    """Read the clocks; None if the system does not tell, as inside some containers."""
    import psutil

    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError, ValueError):
        return None
    busy = sum(getattr(times, name, 0.0) for name in _BUSY)  # macOS has only some of them
    return _Moment(time.monotonic(), busy, time.process_time())
