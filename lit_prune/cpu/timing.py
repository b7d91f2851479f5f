"""Which of several ways to compute the same is the fastest here, on one thread, by the processor's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Name -> processor time of the calling thread, the least of `rounds`, taken in turns after one of warm-up.

    The least, because neighbours only ever add to it.
    """
    for run in ways.values():
        run()
    found = {name: float("inf") for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.thread_time()
            run()
            found[name] = min(found[name], time.thread_time() - start)
    return found
