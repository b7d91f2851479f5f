"""What long work reports while it runs; `lit_prune.cli.progress` shows it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """A receiver of progress.

    Work has up to three measures: its units, known before it begins (`at`); the cells among which they are shared
    (`cells`); and the stage at hand, which counts something of its own (`count`).
    """

    done: int

    def say(self, what: str) -> None:
        """Report what is happening now."""

    def at(self, done: int, what: str) -> None:
        """Report that `done` units of the whole are finished, and what is happening."""

    def cells(self, done: int, total: int) -> None:
        """Report how many cells are finished, and how many there are."""

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Report how far the stage at hand is, such as 24 of 50 of the unit "step"; None if the total is unknown."""


ProgressOf = Callable[[int], AbstractContextManager[Progress]]
"""Number of units -> their progress, from entry to exit."""


class Silent:
    """Progress that is counted and not shown."""

    def __init__(self, total: int = 0) -> None:
        self.done = 0

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, what: str) -> None:
        """Do nothing."""

    def at(self, done: int, what: str) -> None:
        """Note how far the work is."""
        self.done = done

    def cells(self, done: int, total: int) -> None:
        """Do nothing."""

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Do nothing."""


def counted(items: Iterable[Item], tell: Callable[[int], None]) -> Iterator[Item]:
    """Yield the items; call `tell` with the number that the consumer has finished."""
    for number, item in enumerate(items):
        tell(number)
        yield item
