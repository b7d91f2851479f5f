"""Measure nested work in wall seconds: each lap excludes the laps inside it. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Lap:
    """A running timer of one piece of work."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.inner = 0.0
        """Seconds of the finished laps inside this one."""

    @property
    def whole(self) -> float:
        """Seconds so far, including inner laps."""
        return time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """Seconds so far, excluding finished inner laps."""
        return round(self.whole - self.inner, 2)


class Clock:
    """Nested laps of one thread."""

    def __init__(self) -> None:
        self._open: list[Lap] = []

    @contextlib.contextmanager
    def lap(self) -> Iterator[Lap]:
        """Time the body as a lap inside the innermost open one."""
        lap = Lap()
        self._open.append(lap)
        try:
            yield lap
        finally:
            self._open.pop()
            if self._open:
                self._open[-1].inner += lap.whole
