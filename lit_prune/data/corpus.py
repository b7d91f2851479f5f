"""Read a corpus as a stream of documents, each in one split, and fingerprint it.

No tokenization. No torch.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import docstrings, hub
from lit_prune.data.builtin import BUILT_IN, add_built_in, built_in
from lit_prune.data.files import Digest, add_file, kind_of, local_files, opened_text, warn_of_ignored
from lit_prune.data.passages import Piece, articles, contiguous, pieces, with_text
from lit_prune.data.rows import Messages, Row, begins_with_title, hub_rows, rows_of, warn_of_skipped

Split = Literal["train", "validation", "calibration"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration")

_TEXT_KINDS = ("text", "wikitext")
# Marks, in the digest, files whose rows are lines of articles.
_LINES = b"a document an article\0"


class Passage(NamedTuple):
    """A document, or a part of one that is longer than `passages.LONGEST` characters."""

    split: Split
    content: str | Messages
    begins: bool
    """Whether the passage begins its document."""
    ends: bool
    """Whether the passage ends its document."""
    domain: str | None = None
    """None without `corpus.domain`."""


def split_of(name: str, heldout: float) -> Split:
    """Return the split of a document by a hash of its name, independent of the order of reading."""
    return _split_at(_hashed(name), heldout)


def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _split_at(hashed: int, heldout: float) -> Split:
    share = hashed / 2**64
    if share < heldout:
        return "validation"
    return "calibration" if share < 2 * heldout else "train"


class Reader:
    """Iterate over the passages of a corpus in order, and count documents, duplicates and skipped rows.

    If the corpus has a fingerprint, the digest of all bytes read must match it. A source that is a single plain-text
    document is itself cut into splits, unless `split_single` is False.

    Iterating raises:
        ConfigError: if the source cannot be read, or is no longer the text of the fingerprint.
    """

    def __init__(self, corpus: Corpus, *, split_single: bool = True) -> None:
        self.corpus, self.split_single = corpus, split_single
        # rows with null or blank text
        self.skipped = 0
        self._digest = hashlib.sha256()
        self._documents = array.array("Q")

    @property
    def num_documents(self) -> int:
        """Documents read so far."""
        return len(self._documents)

    @property
    def num_duplicates(self) -> int:
        """Documents read so far that duplicate an earlier one."""
        return len(self._documents) - len(np.unique(self._documents))

    def __iter__(self) -> Iterator[Passage]:
        files = [] if self.corpus.path in BUILT_IN else local_files(self.corpus.path)
        if self.corpus.path in BUILT_IN:
            yield from self._built_in()
        elif files:
            yield from self._local(files)
        else:
            yield from self._hub()
            return
        if self.corpus.fingerprint not in (None, self._digest.hexdigest()):
            raise ConfigError(
                f"corpus.path: {self.corpus.path} must not change while it is used, got other text than at the "
                "start; run the command again for the new text"
            )

    def finish(self, passages: Iterator[Passage]) -> None:
        """Verify a partly read text by reading the rest; a hub data set is identified by its revision instead.

        Raises:
            ConfigError: as iterating.
        """
        if self.corpus.path in BUILT_IN or local_files(self.corpus.path):
            collections.deque(passages, maxlen=0)

    def _split(self, name: str | None, content: str | Messages) -> Split:
        text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
        hashed = _hashed(text)
        self._documents.append(hashed)
        return _split_at(hashed if name is None else _hashed(name), self.corpus.holdout_fraction)

    def _built_in(self) -> Iterator[Passage]:
        domains = {} if self.corpus.domain is None else docstrings.packages()
        for document in built_in(self.corpus.path, self._digest):
            split = self._split(document.name, document.text)
            domain = domains.get(document.name or "")
            yield Passage("train" if document.name is None else split, document.text, True, True, domain)

    def _hub(self) -> Iterator[Passage]:
        rows = hub_rows(self.corpus, hub.revision_of(self.corpus.fingerprint))
        lines = hub.is_wikitext(self.corpus.path) and self.corpus.group is self.corpus.domain is None
        yield from self._lines(rows) if lines else self._rows(rows)

    def _local(self, files: list[Path]) -> Iterator[Passage]:
        total = self._length_if_alone(files) if self.split_single else None
        if total is not None:
            (path,) = files
            shares = {
                "validation": self.corpus.holdout_fraction,
                "calibration": self.corpus.holdout_fraction,
                "train": 1.0,
            }
            shares["train"] -= 2 * self.corpus.holdout_fraction
            parts = contiguous(self._pieces(path, self._digest), shares, total)
            self._documents.append(0)
            yield from _with_ends(parts)
            return
        if _are_lines(files, self.corpus):
            self._digest.update(_LINES)
            rows = (row for path in files for row in rows_of(path, self.corpus, self._digest))
            yield from self._lines(rows)  # across files: an article may end in the next one
            return
        for path in files:
            if kind_of(path) in _TEXT_KINDS:
                yield from self._documents_of(self._pieces(path, self._digest))
            else:
                yield from self._rows(rows_of(path, self.corpus, self._digest))

    def _lines(self, rows: Iterable[Row]) -> Iterator[Passage]:
        lines = (line for row in rows if isinstance(row.content, str) for line in row.content.splitlines(True) or [""])
        yield from self._documents_of(with_text((True, article) for article in articles(lines)))

    def _rows(self, rows: Iterable[Row]) -> Iterator[Passage]:
        for content, group, domain in rows:
            if content is None or (isinstance(content, str) and not content.strip()):
                self.skipped += 1
            else:
                yield Passage(self._split(group, content), content, True, True, domain)

    def _documents_of(self, documents: Iterable[Piece]) -> Iterator[Passage]:
        """Yield the passages of plain documents; the split is by a hash of the text, of a long one by its beginning."""

        def with_splits() -> Iterator[tuple[str, Piece]]:
            split = ""
            for begins, text in documents:
                split = self._split(None, text) if begins else split
                yield split, (begins, text)

        yield from _with_ends(with_splits())

    def _pieces(self, path: Path, digest: Digest) -> Iterator[Piece]:
        with opened_text(path, digest) as stream:
            if kind_of(path) == "wikitext" and self.corpus.separator is None:
                yield from with_text((True, article) for article in articles(stream))
            else:
                yield from with_text(pieces(stream, self.corpus.separator))

    def _length_if_alone(self, files: list[Path]) -> int | None:
        """Return the length of the source in characters if it is a single plain-text document, else None."""
        if len(files) > 1 or kind_of(files[0]) not in _TEXT_KINDS:
            return None
        number = length = 0
        for begins, text in self._pieces(files[0], hashlib.sha256()):
            number, length = number + begins, length + len(text)
            if number > 1:
                return None
        return length if number else None


def _with_ends(parts: Iterator[tuple[str, Piece]]) -> Iterator[Passage]:
    """Yield passages with `ends` set, which the next piece determines."""
    last: tuple[str, Piece] | None = None
    for part in parts:
        if last is not None:
            yield Passage(cast(Split, last[0]), last[1][1], last[1][0], part[1][0])
        last = part
    if last is not None:
        yield Passage(cast(Split, last[0]), last[1][1], last[1][0], True)


def documents(corpus: Corpus) -> Iterator[tuple[Split, str]]:
    """Stream the texts of a corpus with their splits; a very long document comes in several.

    Raises:
        ConfigError: as `Reader`, or if the documents are conversations.
    """
    for passage in Reader(corpus):
        yield passage.split, _plain(passage, corpus)


def texts(corpus: Corpus, limit: int | None = None) -> Iterator[str]:
    """Stream the first `limit` texts of a corpus, ignoring splits.

    If the corpus has a fingerprint, the whole text is verified regardless of `limit`.

    Raises:
        ConfigError: as `documents`.
    """
    reader = Reader(corpus, split_single=False)
    passages = iter(reader)
    for passage in itertools.islice(passages, limit):
        yield _plain(passage, corpus)
    reader.finish(passages)
    warn_of_skipped(corpus.path, reader.skipped)


def _plain(passage: Passage, corpus: Corpus) -> str:
    if not isinstance(passage.content, str):
        raise ConfigError(f"corpus.text_column: {corpus.text_column!r} must be text here, got a list of messages")
    return passage.content


def fingerprint(corpus: Corpus) -> str:
    """Return the sha256 of all content of a corpus; for a hub data set, its current revision.

    The corpus `docstrings` is identified by its package versions, and not read here.

    Raises:
        ConfigError: if the source does not exist, is empty, or is not UTF-8 text.
    """
    files = [] if corpus.path in BUILT_IN else local_files(corpus.path)
    _check_fields(corpus, files)
    digest = hashlib.sha256()
    if corpus.path in BUILT_IN:
        add_built_in(corpus.path, digest)
        return digest.hexdigest()
    if not files:
        return hub.fingerprint(corpus.path)
    warn_of_ignored(corpus.path)
    if _are_lines(files, corpus):
        digest.update(_LINES)
    for path in files:
        add_file(path, digest)
    return digest.hexdigest()


def pin(corpus: Corpus) -> Corpus:
    """Return the same corpus with its fingerprint filled in."""
    return corpus if corpus.fingerprint else dataclasses.replace(corpus, fingerprint=fingerprint(corpus))


def _check_fields(corpus: Corpus, files: list[Path]) -> None:
    """Raise a ConfigError for fields that have no effect on this source."""
    plain = corpus.path in BUILT_IN or (files and all(kind_of(path) in _TEXT_KINDS for path in files))
    if corpus.separator == "":
        raise ConfigError("corpus.separator: must be at least one character, or null, got ''")
    if corpus.separator is not None and not any(kind_of(path) in _TEXT_KINDS for path in files):
        raise ConfigError(f"corpus.separator: must be null unless the source is text files, got {corpus.separator!r}")
    if corpus.group is not None and plain:
        raise ConfigError(f"corpus.group: must be null for plain text, which has no columns, got {corpus.group!r}")
    if corpus.domain not in ((None, "package") if corpus.path == "docstrings" else (None,)) and plain:
        allowed = "package or null for docstrings" if corpus.path == "docstrings" else "null for plain text"
        raise ConfigError(f"corpus.domain: must be {allowed}, got {corpus.domain!r}")


def _are_lines(files: list[Path], corpus: Corpus) -> bool:
    """Return whether the rows of files are the lines of WikiText articles."""
    rows = corpus.group is corpus.domain is None and all(kind_of(path) not in _TEXT_KINDS for path in files)
    return rows and begins_with_title(files[0], corpus)
