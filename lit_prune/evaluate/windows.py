"""A text as documents to score: their token ids, which of the text those stand for, and the windows to read.

What a tokenizer puts around a text is context and is not scored itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_prune.config import ConfigError

# Characters tokenised at once. A token and its offsets take about 100 bytes as Python objects.
_CHARACTERS = 2**20


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

    @property
    def place(self) -> tuple[int, int]:
        """Place of the document and first scored token, which no other window has."""
        return self.document.place, self.scored


def read(
    tokenizer: Any, texts: Iterable[tuple[int, str]], at_once: int = 128, *, rolling: bool = False
) -> Iterator[list[Document]]:
    """Documents of (place, text), `at_once` at a time or fewer where they are long.

    With `rolling` they are read as lm-eval reads them: behind its prefix token, whole, and counted by its rules.

    Raises:
        ConfigError: a tokenizer that cannot say which characters a token stands for, or has no prefix token.
    """
    if not tokenizer.is_fast:
        raise ConfigError("text: the model's tokenizer does not say which characters a token stands for")
    prefix = _prefix_token(tokenizer) if rolling else None
    for batch in _groups(texts, at_once):
        encoded = tokenizer(
            [text for _, text in batch], return_attention_mask=False, return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
            split_special_tokens=not rolling,  # text that spells a control token stays text; lm-eval makes it one
        )  # fmt: skip
        decoded = tokenizer.batch_decode(encoded["input_ids"], skip_special_tokens=True)
        columns = (encoded[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        yield [
            _document(place, text, ids, offsets, special, _num_unread(text, back))
            if prefix is None
            else _rolling_document(tokenizer, prefix, place, text, ids, _num_unread(text, back))
            for (place, text), back, ids, offsets, special in zip(batch, decoded, *columns, strict=True)
        ]


def _groups(texts: Iterable[tuple[int, str]], at_once: int) -> Iterator[list[tuple[int, str]]]:
    """Texts tokenised together: few enough that their tokens and offsets take tens of megabytes, or one."""
    group: list[tuple[int, str]] = []
    characters = 0
    for place, text in texts:
        if group and (len(group) == at_once or characters + len(text) > _CHARACTERS):
            yield group
            group, characters = [], 0
        group.append((place, text))
        characters += len(text)
    if group:
        yield group


def windows(document: Document, window: int, stride: int) -> Iterator[Window]:
    """Yield what to read so that every scored token is predicted once: windows of `window` tokens, `stride` apart.

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


def rolling_windows(document: Document, window: int) -> Iterator[Window]:
    """Windows of lm-eval's `loglikelihood_rolling` (`get_rolling_token_windows` with `context_len=1`, made disjoint).

    Each predicts the next `window` tokens from as many. The last one predicts what is left, and begins earlier to have
    as much context.
    """
    last = len(document.ids) - 1
    for scored in range(1, last + 1, window):
        stop = min(scored + window - 1, last)
        yield Window(document, max(stop - window, 0), stop, scored)


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
    return Document(place, ids, first, len(text.encode()), len(text.split()), num_unread)


def _after_first(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first token that has no character in common with those before it, and the first character after
    those."""
    if not offsets:
        return 0, 0
    first, end = 1, offsets[0][1]
    while first < len(offsets) and offsets[first][0] < end:
        end = max(end, offsets[first][1])
        first += 1
    return first, end


def _prefix_token(tokenizer: Any) -> int:
    """Return the token that lm-eval puts before a document: the begin token, or else the end token."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ConfigError("windows: must be sliding for a tokenizer without a begin and an end token, got rolling")


def _rolling_document(tokenizer: Any, prefix: int, place: int, text: str, ids: list[int], num_unread: int) -> Document:
    """Return a document as lm-eval's HFLM tokenises it and its PerplexityTask counts it."""
    if text.startswith(tokenizer.decode(prefix)):  # lm-eval adds no special tokens to a text that spells the prefix
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return Document(place, [prefix, *ids], 1, len(text.encode()), len(re.split(r"\s+", text)), num_unread)


def _num_unread(text: str, decoded: str) -> int:
    """UTF-8 bytes of visible characters that are lost in the tokens."""
    return max(_num_visible(text) - _num_visible(decoded), 0)


def _num_visible(text: str) -> int:
    return len("".join(text.split()).encode())
