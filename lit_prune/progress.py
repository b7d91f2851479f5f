"""The progress interface of long operations; `lit_prune.cli.progress` displays it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """A receiver of progress.

    An operation reports up to three measures: units of work, whose total is known in advance (`at`); finished cells
    (`cells`); and the current stage in its own unit, such as steps or tokens (`count`).
    """

    @property
    def done(self) -> int:
        """Finished units of work."""

    def say(self, what: str) -> None:
        """Report the current activity."""

    def at(self, done: int, what: str) -> None:
        """Report that `done` units of work are finished, and the current activity."""

    def cells(self, done: int, total: int) -> None:
        """Report the numbers of finished cells and of all cells."""

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Report the progress of the current stage, such as 24 of 50 "step"; `total` is None if unknown."""


ProgressOf = Callable[[int], AbstractContextManager[Progress]]
"""Number of units -> a context manager that yields their progress."""


class Silent:
    """Progress that is counted but not displayed."""

    def __init__(self, total: int = 0) -> None:
        self.done = 0

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, what: str) -> None:
        """Do nothing."""

    def at(self, done: int, what: str) -> None:
        """Record the number of finished units."""
        self.done = done

    def cells(self, done: int, total: int) -> None:
        """Do nothing."""

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Do nothing."""


def counted(items: Iterable[Item], on_progress: Callable[[int], None]) -> Iterator[Item]:
    """Yield the items; before each, call `on_progress` with the number of items already consumed."""
    for number, item in enumerate(items):
        on_progress(number)
        yield item
