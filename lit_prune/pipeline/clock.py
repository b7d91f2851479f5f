"""Wall seconds of work within work: each is charged its own time alone. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Lap:
    """A piece of work that has begun."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.inner = 0.0
        """Seconds of the laps that began and ended within it."""

    @property
    def whole(self) -> float:
        """Seconds so far, with those of the laps within."""
        return time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """Seconds so far, without those of the laps within that have ended."""
        return round(self.whole - self.inner, 2)


class Clock:
    """Laps of one thread, one within the other."""

    def __init__(self) -> None:
        self._open: list[Lap] = []

    @contextlib.contextmanager
    def lap(self) -> Iterator[Lap]:
        """Begin a lap within the last one that is open, and end it."""
        lap = Lap()
        self._open.append(lap)
        try:
            yield lap
        finally:
            self._open.pop()
            if self._open:
                self._open[-1].inner += lap.whole
