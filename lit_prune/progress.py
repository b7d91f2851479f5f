"""What long work reports while it runs; `lit_prune.cli.progress` shows it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """A receiver of progress over a number of steps."""

    done: int

    def say(self, what: str) -> None:
        """Say what is happening now."""

    def at(self, done: int, what: str) -> None:
        """Say that `done` of all steps are finished, and what is happening."""


ProgressOf = Callable[[int], AbstractContextManager[Progress]]
"""Number of steps -> their progress, from entry to exit."""


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
