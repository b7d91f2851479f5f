"""Time alternative implementations by the CPU time of the calling thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the CPU seconds of each implementation, the minimum over `rounds` interleaved runs after a warm-up.

    The minimum, because other processes can only add to it.
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
