"""A text as a question: what is a model's loss on it, by document? No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import corpus

DEFAULT_WINDOW = 2048
"""Most tokens read at once by default. Attention over more costs much and tells little about a document's loss."""

Windows = Literal["sliding", "rolling"]
"""sliding: each `stride` tokens a window; rolling: those of lm-eval's `loglikelihood_rolling`."""

SCHEMA = 1
"""Meaning of an answer; raised by hand when the same question is measured in another way."""


@dataclass(frozen=True)
class Text:
    """A text and how it is read."""

    source: str
    """A file, a folder, a data set of the hub, or a built-in corpus."""
    column: str | None
    """Where the text stands in a data set."""
    window: int | None
    """Tokens read at once; None: as many as the model has positions, but not more than DEFAULT_WINDOW."""
    stride: int | None
    """Tokens from one window to the next; None: as many as a window has."""
    limit: int | None
    """The first so many documents; None: all."""
    fingerprint: str
    """sha256 of the text, or its revision on the hub."""
    windows: Windows = "sliding"
    """Where the windows begin, and how bytes and words are counted."""

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
        """See that there is a document to read.

        Raises:
            ConfigError: there is none, or no such column.
        """
        asked = Corpus(source=self.source, column=self.column or "text", fingerprint=self.fingerprint)
        if _known(lambda: next(corpus.texts(asked), None)) is None:
            raise ConfigError(f"--corpus: {self.source} holds nothing but white space")


def text(
    source: str, column: str | None = None, window: int | None = None, stride: int | None = None,
    limit: int | None = None, windows: Windows = "sliding",
) -> Text:  # fmt: skip
    """A text as it stands now.

    Raises:
        ConfigError: there is no such text, or it cannot be read so.
    """
    for name, number, most in (("window", window, None), ("stride", stride, window), ("limit", limit, None)):
        if number is not None and (number < 1 or (most is not None and number > most)):
            upper = "" if most is None else f" and at most the window, {most}"
            raise ConfigError(f"--{name}: {number} asked for, it is at least 1{upper}")
    if windows == "rolling" and stride is not None:
        raise ConfigError(f"--stride: must be unset with --windows rolling, got {stride}")
    if not source.strip():
        raise ConfigError("--corpus: none named; it is a file, a folder, a data set of the hub, or a built-in text")
    asked = Corpus(source=source, column=column or "text")
    return Text(source, column, window, stride, limit, _known(lambda: corpus.fingerprint(asked)), windows)


def _known(ask: Callable[[], Any]) -> Any:
    """The answer of what speaks of texts as corpora."""
    try:
        return ask()
    except ConfigError as error:
        message = str(error).replace("corpus.source:", "--corpus:", 1).replace("corpus.column:", "--text-column:", 1)
        raise ConfigError(message) from None
