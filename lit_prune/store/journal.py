"""Numbers that a long computation measures one after another, kept in a file for a run that resumes it. No torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lit_prune.store.atomic import write_text


class Journal:
    """Return numbers that an interrupted run has measured, and measure the others.

    The resumed run must ask for the same numbers in the same order. The file is written at most every `seconds`
    seconds, and when an exception leaves the `with` block.
    """

    def __init__(self, path: Path, seconds: float, on_write: Callable[[], None] = lambda: None) -> None:
        self._path, self._seconds, self._on_write = path, seconds, on_write
        self._numbers, self._asked, self._written = _read(path), 0, time.monotonic()

    def __call__(self, measure: Callable[[], float]) -> float:
        """Return the next number."""
        if self._asked == len(self._numbers):
            self._numbers.append(measure())
            if time.monotonic() - self._written >= self._seconds:
                self._write()
        self._asked += 1
        return self._numbers[self._asked - 1]

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._numbers:
            with contextlib.suppress(OSError):  # the disk may be full
                self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(self._numbers))
        self._written = time.monotonic()
        self._on_write()


def _read(path: Path) -> list[float]:
    try:
        return [float(number) for number in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []
