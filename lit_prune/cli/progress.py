"""What a person sees while work is done: one bar with what is happening and the time left, or a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from lit_prune.escape import printable

_SECONDS_BETWEEN_LINES = 20.0


class _Description(ProgressColumn):
    """What is happening: the only column that is shortened where the console is narrow."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class ProgressBar:
    """Progress over `total` steps of work on standard error; plain lines where that is no terminal."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.done = total, 0
        self._console = Console(stderr=True, quiet=quiet)
        self._live = sys.stderr.isatty() and not quiet
        self._rich = Progress(
            _Description(), BarColumn(16, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)), TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False, table_column=Column(no_wrap=True)),
            console=self._console, disable=not self._live, speed_estimate_period=120,
        )  # fmt: skip
        self._task = self._rich.add_task("", total=total)
        self._said_at = self._started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> ProgressBar:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._rich.stop()

    def say(self, what: str) -> None:
        """What is happening now."""
        what = printable(what)
        self._rich.update(self._task, description=what)
        if not self._live:
            self._line(what)

    def at(self, done: int, what: str) -> None:
        """That `done` steps of all are behind us, and what is happening."""
        self.done, what = done, printable(what)
        if self._first is None or self._first[1] == done:
            self._first = (time.monotonic(), done)
        self._rich.update(self._task, completed=done, description=what)
        if not self._live and time.monotonic() - self._said_at > _SECONDS_BETWEEN_LINES:
            self._line(what)

    def _line(self, what: str) -> None:
        self._said_at = time.monotonic()
        left = f", about {self._left():.0f} s left" if self._left() else ""
        spent = self._said_at - self._started
        # Soft-wrapped: a line of a log stays one line.
        self._console.print(Text(f"[{self.done}/{self.total}] {what} ({spent:.0f} s{left})"), soft_wrap=True)

    def _left(self) -> float:
        """Seconds the rest takes at the pace since the first step: what came before it was preparation."""
        since, first = self._first or (0.0, self.done)
        if self.done == first:
            return 0.0
        return (time.monotonic() - since) / (self.done - first) * (self.total - self.done)
