"""A text on which to measure the loss of a model. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_prune.config import ConfigError, Corpus, errors_of
from lit_prune.data import corpus

DEFAULT_WINDOW = 2048
"""Upper bound of the default window, in tokens. A longer context is costly and hardly changes a document's loss."""

Windows = Literal["sliding", "rolling"]
"""sliding: a window every `stride` tokens; rolling: the windows of lm-eval's `loglikelihood_rolling`."""

SCHEMA = 1
"""Version of the measurement; part of the address."""


@dataclass(frozen=True)
class Text:
    """A text and the windows in which it is read."""

    source: str
    """A file, a folder, a data set of the hub, or a built-in corpus."""
    column: str | None = None
    """Column of a data set that holds the text."""
    window: int | None = None
    """Tokens of a window; None: the positions of the model, but at most DEFAULT_WINDOW."""
    stride: int | None = None
    """Tokens from one window to the next; None: the window."""
    limit: int | None = None
    """Number of documents, the first ones; None: all."""
    fingerprint: str | None = None
    """sha256 of the text, or its revision on the hub; None: not pinned."""
    windows: Windows = "sliding"
    """How windows are placed, and bytes and words counted."""

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
        """Return the window of a model with `positions`, in tokens.

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
        """The corpus of the text."""
        return Corpus(path=self.source, text_column=self.column or "text", fingerprint=self.fingerprint)

    @property
    def title(self) -> str:
        """The text's name in a table."""
        return self.source.rstrip("/").rpartition("/")[2]

    @property
    def about(self) -> dict[str, Any]:
        """The fields that the address hashes, without those of the model."""
        found = {
            "stage": "text", "schema": SCHEMA, "text": self.fingerprint, "column": self.column, "window": self.window,
            "stride": self.stride, "limit": self.limit,
        }  # fmt: skip
        return found if self.windows == "sliding" else found | {"windows": self.windows}

    def check(self) -> None:
        """Check that the text has at least one document.

        Raises:
            ConfigError: if it has none, or lacks the column.
        """
        if _with_flags(lambda: next(corpus.texts(self.corpus), None)) is None:
            raise ConfigError(f"--corpus: must hold text, got {self.source}, which is empty or white space")


def text(
    source: str, column: str | None = None, window: int | None = None, stride: int | None = None,
    limit: int | None = None, windows: Windows = "sliding",
) -> Text:  # fmt: skip
    """Return a text with the fingerprint of its current content.

    Raises:
        ConfigError: if the text does not exist, or a number is out of range.
    """
    found = Text(source, column, window, stride, limit, windows=windows)
    return dataclasses.replace(found, fingerprint=_with_flags(lambda: corpus.fingerprint(found.corpus)))


def _with_flags(compute: Callable[[], Any]) -> Any:
    """Return the result of `compute`; its errors about a corpus name the flag instead of the field."""
    with errors_of({"corpus.path": "--corpus", "corpus.text_column": "--text-column"}):
        return compute()
