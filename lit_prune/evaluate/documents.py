"""A text as documents to score: their token ids, which of the text those stand for, and the windows to read.

What a tokenizer puts around a text is context and is not scored itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_prune.config import ConfigError


@dataclass(frozen=True)
class Document:
    """A document as its tokenizer reads it."""

    place: int
    """Which document of the source it is, from 0."""
    ids: Sequence[int]
    """Token ids, behind what the tokenizer puts before a text."""
    first: int
    """The first scored token: that of the text after a begin token. Without one nothing predicts the first token, which
    is not scored; nor are those that share a character with it, so that the scored ones stand for whole characters."""
    num_bytes: int
    """UTF-8 bytes of the text from its first scored token on."""
    num_words: int
    """Words of the same, parted by white space."""
    num_unread: int
    """UTF-8 bytes of the whole document, white space aside, that are lost in its tokens: unknown to the tokenizer."""

    @property
    def num_scored(self) -> int:
        """Scored tokens."""
        return max(len(self.ids) - self.first, 0)


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document as input; those from `scored` to `stop`, inclusive, are predicted."""

    document: Document
    start: int
    stop: int
    scored: int

    def __len__(self) -> int:
        return self.stop - self.start


def read(tokenizer: Any, texts: Iterable[tuple[int, str]], at_once: int = 128) -> Iterator[list[Document]]:
    """Documents of (place, text), `at_once` at a time.

    Raises:
        ConfigError: a tokenizer that cannot say which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ConfigError("text: the model's tokenizer does not say which characters a token stands for")
    stream = iter(texts)
    while batch := list(itertools.islice(stream, at_once)):
        encoded = tokenizer(
            [text for _, text in batch], return_attention_mask=False, return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        decoded = tokenizer.batch_decode(encoded["input_ids"], skip_special_tokens=True)
        columns = (encoded[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        yield [
            _document(place, text, ids, offsets, special, _num_visible(text) - _num_visible(back))
            for (place, text), back, ids, offsets, special in zip(batch, decoded, *columns, strict=True)
        ]


def windows(document: Document, window: int, stride: int) -> Iterator[Window]:
    """What to read so that every scored token is predicted once: windows of `window` tokens, `stride` apart.

    A token is predicted from at least `window - stride + 1` tokens, or from all before it.
    """
    last, scored = len(document.ids) - 1, document.first
    for start in range(0, last, stride):
        stop = min(start + window, last)
        if scored <= stop:
            yield Window(document, start, stop, scored)
            scored = stop + 1
        if stop == last:
            return


def batches(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows of like lengths together, at most `tokens` with what fills them up, or one."""
    batch: list[Window] = []
    for window in sorted(windows, key=len):
        if batch and (len(batch) + 1) * len(window) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _document(
    place: int, text: str, ids: list[int], offsets: list[tuple[int, int]], special: list[int], num_unread: int
) -> Document:
    before = next((i for i, added in enumerate(special) if not added), len(ids))
    behind = next((i for i, added in enumerate(reversed(special)) if not added), 0)
    ids, offsets = ids[: len(ids) - behind], offsets[: len(ids) - behind]
    first, character = (before, 0) if before else _after_first(offsets)
    # A text that the tokenizer makes nothing of has nothing to score.
    text = text[character:] if len(ids) > first else ""
    return Document(place, ids, first, len(text.encode()), len(text.split()), max(num_unread, 0))


def _after_first(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first token that has no character in common with those before it, and the first character after those."""
    if not offsets:
        return 0, 0
    first, end = 1, offsets[0][1]
    while first < len(offsets) and offsets[first][0] < end:
        end = max(end, offsets[first][1])
        first += 1
    return first, end


def _num_visible(text: str) -> int:
    return len("".join(text.split()).encode())
