"""A text to measure the loss of a model on, by document. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_prune.config import ConfigError, Corpus, errors_of
from lit_prune.data import corpus

DEFAULT_WINDOW = 2048
"""Most tokens read at once by default. Attention over more costs much and tells little about a document's loss."""

Windows = Literal["sliding", "rolling"]
"""sliding: each `stride` tokens a window; rolling: those of lm-eval's `loglikelihood_rolling`."""

SCHEMA = 1
"""Version of the measurement; part of the address."""


@dataclass(frozen=True)
class Text:
    """A text and how it is read."""

    source: str
    """A file, a folder, a data set of the hub, or a built-in corpus."""
    column: str | None = None
    """Column of a data set that holds the text."""
    window: int | None = None
    """Tokens read at once; None: the positions of the model, but at most DEFAULT_WINDOW."""
    stride: int | None = None
    """Tokens from one window to the next; None: the window."""
    limit: int | None = None
    """Number of documents, the first ones; None: all."""
    fingerprint: str | None = None
    """sha256 of the text, or its revision on the hub; None: the text as it is when it is read."""
    windows: Windows = "sliding"
    """Where the windows begin, and how bytes and words are counted."""

    def __post_init__(self) -> None:
        """Validate the numbers.

        Raises:
            ConfigError: if one is out of range.
        """
        for name, number in (("window", self.window), ("stride", self.stride), ("limit", self.limit)):
            if number is not None and number < 1:
                raise ConfigError(f"--{name}: must be at least 1, got {number}")
        if self.windows == "rolling" and self.stride is not None:
            raise ConfigError(f"--stride: must be unset with --windows rolling, got {self.stride}")
        if not self.source.strip():
            raise ConfigError("--corpus: must be a file, a folder, a hub data set or a built-in text, got ''")

    def window_for(self, positions: int, model: str = "the model") -> int:
        """Return the tokens that a model with `positions` reads at once.

        Raises:
            ConfigError: if the window or the stride is too long.
        """
        window = min(positions, DEFAULT_WINDOW) if self.window is None else self.window
        for name, size in (("window", self.window), ("stride", self.stride)):
            if size is not None and size > positions:
                raise ConfigError(f"--{name}: must be at most {positions}, the positions of {model}, got {size}")
        if self.stride is not None and self.stride > window:
            raise ConfigError(f"--stride: must be at most the window, {window}, got {self.stride}")
        return window

    @property
    def corpus(self) -> Corpus:
        """The text as a corpus."""
        return Corpus(path=self.source, text_column=self.column or "text", fingerprint=self.fingerprint)

    @property
    def title(self) -> str:
        """The text's name in a table."""
        return self.source.rstrip("/").rpartition("/")[2]

    @property
    def about(self) -> dict[str, Any]:
        """What the address of the answer is made of, without the model's part."""
        found = {
            "stage": "text", "schema": SCHEMA, "text": self.fingerprint, "column": self.column, "window": self.window,
            "stride": self.stride, "limit": self.limit,
        }  # fmt: skip
        return found if self.windows == "sliding" else found | {"windows": self.windows}

    def check(self) -> None:
        """Validate that there is a document to read.

        Raises:
            ConfigError: if there is none, or no such column.
        """
        if _with_flags(lambda: next(corpus.texts(self.corpus), None)) is None:
            raise ConfigError(f"--corpus: must hold text, got {self.source}, which is empty or white space")


def text(
    source: str, column: str | None = None, window: int | None = None, stride: int | None = None,
    limit: int | None = None, windows: Windows = "sliding",
) -> Text:  # fmt: skip
    """Return a text with the fingerprint of its present content.

    Raises:
        ConfigError: if there is no such text, or a number is out of range.
    """
    found = Text(source, column, window, stride, limit, windows=windows)
    return dataclasses.replace(found, fingerprint=_with_flags(lambda: corpus.fingerprint(found.corpus)))


def _with_flags(ask: Callable[[], Any]) -> Any:
    """Return what `ask` does; an error of a corpus names the flag instead of the field."""
    with errors_of({"corpus.path": "--corpus", "corpus.text_column": "--text-column"}):
        return ask()
