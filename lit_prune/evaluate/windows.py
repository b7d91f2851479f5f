"""Split a text into documents and windows to score, with token ids and their characters.

Special tokens that a tokenizer adds around a text are context and are not scored.
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
    """A tokenised document."""

    place: int
    """Index of the document in the source, from 0."""
    ids: Sequence[int]
    """Token ids, including the special tokens before the text."""
    first: int
    """Index of the first scored token: the first of the text if a begin token precedes it. Otherwise the first token,
    which nothing predicts, and those that share a character with it are skipped: scored characters are whole."""
    num_bytes: int
    """UTF-8 bytes of the text from its first scored token on."""
    num_words: int
    """Words of the same text, separated by white space."""
    num_unread: int
    """UTF-8 bytes of the whole document, except white space, that its tokens lose: unknown to the tokenizer."""

    @property
    def num_scored(self) -> int:
        """Number of scored tokens."""
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
        """Index of the document and first scored token, unique to the window."""
        return self.document.place, self.scored


def read(
    tokenizer: Any, texts: Iterable[tuple[int, str]], at_once: int = 128, *, rolling: bool = False
) -> Iterator[list[Document]]:
    """Yield the documents of (index, text) pairs in groups of `at_once`, or fewer if they are long.

    With `rolling`, tokenise and count as lm-eval does: after its prefix token, and with the first token scored.

    Raises:
        ConfigError: if the tokenizer has no character offsets, or no prefix token.
    """
    if not tokenizer.is_fast:
        raise ConfigError("text: the model's tokenizer does not say which characters a token stands for")
    prefix = _prefix_token(tokenizer) if rolling else None
    for batch in _groups(texts, at_once):
        encoded = tokenizer(
            [text for _, text in batch], return_attention_mask=False, return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
            split_special_tokens=not rolling,  # text that spells a special token stays text; lm-eval converts it
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
    """Yield the texts to tokenise together: their tokens and offsets take tens of megabytes, or it is a single text."""
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
    """Yield windows of `window` tokens, `stride` apart, that predict every scored token once.

    Each prediction has a context of at least `window - stride + 1` tokens, or all tokens before it.
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
    """Yield the windows of lm-eval's `loglikelihood_rolling` (`get_rolling_token_windows`, `context_len=1`, disjoint).

    Each predicts the next `window` tokens from as many. The last one predicts the rest and starts earlier, for the
    same context.
    """
    last = len(document.ids) - 1
    for scored in range(1, last + 1, window):
        stop = min(scored + window - 1, last)
        yield Window(document, max(stop - window, 0), stop, scored)


def batches(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Yield batches of windows of similar lengths, of at most `tokens` tokens with padding, or of one window."""
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
    # A text without tokens has nothing to score.
    text = text[character:] if len(ids) > first else ""
    return Document(place, ids, first, len(text.encode()), len(text.split()), num_unread)


def _after_first(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first token that shares no character with those before it, and the character at which those end."""
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
    if text.startswith(tokenizer.decode(prefix)):  # lm-eval adds no special tokens to such a text
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return Document(place, [prefix, *ids], 1, len(text.encode()), len(re.split(r"\s+", text)), num_unread)


def _num_unread(text: str, decoded: str) -> int:
    """Return the number of UTF-8 bytes of visible characters that the tokens lose."""
    return max(_num_visible(text) - _num_visible(decoded), 0)


def _num_visible(text: str) -> int:
    return len("".join(text.split()).encode())
