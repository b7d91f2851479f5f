"""What a person sees while work is done: one line with counts and the time left, or a line of a log now and then."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from lit_prune.escape import printable

_SECONDS_BETWEEN_LINES = 20.0
_WIDE = 100
"""Columns of a console on which there is room for a bar beside the counts."""
_FIXED = Column(no_wrap=True)


class _Description(ProgressColumn):
    """What is happening: the only column that is shortened on a narrow console."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Counts(ProgressColumn):
    """cells 3/20 · step 24/50 · 0:01:12 · 0:03:40 left."""

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__(_FIXED)
        self.bar = bar

    def render(self, task: Task) -> Text:
        elapsed = _clock(time.monotonic() - self.bar.started)
        left = task.time_remaining
        return Text(" · ".join((*self.bar.counts(), elapsed, f"{'-:--:--' if left is None else _clock(left)} left")))


class ProgressBar:
    """Progress over `total` units of work on standard error; plain lines if that is no terminal."""

    def __init__(self, total: int, quiet: bool = False, unit: str = "") -> None:
        self.total, self.done, self.unit = total, 0, unit
        self.started = self._printed_at = time.monotonic()
        self._cells: tuple[int, int] | None = None
        self._stage = ""
        self._first: tuple[float, float] | None = None
        self._console = Console(stderr=True, quiet=quiet)
        self._live = sys.stderr.isatty() and not quiet
        bar = [BarColumn(16, table_column=_FIXED)] if self._console.width >= _WIDE else []
        self._rich = Progress(
            _Description(), *bar, _Counts(self), console=self._console, disable=not self._live,
            speed_estimate_period=120,
        )  # fmt: skip
        self._task = self._rich.add_task("", total=total or None)

    def __enter__(self) -> ProgressBar:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._rich.stop()

    def say(self, what: str) -> None:
        """Show what is happening now."""
        self._stage = ""
        self._show(what, at_once=True)

    def at(self, done: int, what: str) -> None:
        """Show that `done` units are finished, and what is happening."""
        self.done = done
        self._show(what)

    def cells(self, done: int, total: int) -> None:
        """Show how many cells are finished."""
        self._cells = done, total
        self._update()

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Show how far the stage at hand is."""
        self._stage = f"{unit} {done:,}" if total is None else f"{unit} {done:,}/{total:,}"
        self._show(what)

    def counts(self) -> list[str]:
        """Return the counts as they are shown: of cells, or of units where there are no cells, and of the stage."""
        found = []
        if self._cells is not None:
            found.append(f"cells {self._cells[0]}/{self._cells[1]}")
        elif self.total:
            found.append(f"{self.unit} {self.done:,}/{self.total:,}".strip())
        return [*found, self._stage] if self._stage else found

    def _show(self, what: str, at_once: bool = False) -> None:
        what = printable(what)
        self._update(description=what)
        if not self._live and (at_once or time.monotonic() - self._printed_at > _SECONDS_BETWEEN_LINES):
            self._line(what)

    def _update(self, **changes: str) -> None:
        done, total = self._measure()
        if self._first is None or self._first[1] == done:
            self._first = time.monotonic(), done
        self._rich.update(self._task, completed=done, total=total or None, **changes)  # type: ignore[arg-type]

    def _measure(self) -> tuple[float, float]:
        """Return how much of the work is done, and all of it: in units, or in cells where no unit is planned."""
        return (self.done, self.total) if self.total else self._cells or (0, 0)

    def _line(self, what: str) -> None:
        self._printed_at = time.monotonic()
        left = self._left()
        spent = f"{self._printed_at - self.started:.0f} s" + (f", about {left:.0f} s left" if left else "")
        counts = f"[{', '.join(counts)}] " if (counts := self.counts()) else ""
        # Soft-wrapped: a line of a log stays one line.
        self._console.print(Text(f"{counts}{what} ({spent})"), soft_wrap=True)

    def _left(self) -> float:
        """Seconds that the rest takes at the pace since the first unit; what came before it was preparation."""
        done, total = self._measure()
        since, first = self._first or (0.0, done)
        return 0.0 if done == first else (time.monotonic() - since) / (done - first) * (total - done)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
