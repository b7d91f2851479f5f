"""Plain text as a stream of documents, each in passages of bounded size. No torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

LONGEST = 1 << 20
"""Maximum length of a passage in characters; longer documents are cut into several."""

# WikiText: titles have one equals sign on each side, sections two or more.
_TITLE = re.compile(r" = (?!= ).* (?<!= )= \n?")

Piece = tuple[bool, str]
"""(whether the piece begins a document, its text)."""


def pieces(stream: TextIO, separator: str | None) -> Iterator[Piece]:
    """Yield the documents of a text file in pieces: the whole file, or the parts between separators."""
    return _cut(stream) if separator is None else _parted(stream, separator)


def _cut(stream: TextIO) -> Iterator[Piece]:
    """Yield one document in pieces that end at line ends if possible."""
    begins, text = True, ""
    while more := stream.read(LONGEST - len(text)):
        text += more
        if len(text) == LONGEST:
            end = text.rfind("\n") + 1 or len(text)
            yield begins, text[:end]
            begins, text = False, text[end:]
    if text:
        yield begins, text


def _parted(stream: TextIO, separator: str) -> Iterator[Piece]:
    begins, text = True, ""
    while more := stream.read(LONGEST):
        *whole, text = (text + more).split(separator)
        for document in whole:
            yield begins, document
            begins = True
        if len(text) > 2 * LONGEST:  # keep the end, which may begin a separator
            end = len(text) - len(separator)
            yield begins, text[:end]
            begins, text = False, text[end:]
    yield begins, text


def is_title(line: str) -> bool:
    """Return whether a line between blank lines is the title of a WikiText article."""
    return _TITLE.fullmatch(line) is not None


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Yield the articles of WikiText from its lines."""
    article: list[str] = []
    padded = itertools.chain([""], lines, [""])
    before, line = next(padded), next(padded)
    for after in padded:
        if is_title(line) and not before.strip() and not after.strip() and article:
            yield "".join(article)
            article = []
        article.append(line)
        before, line = line, after
    if article:
        yield "".join(article)


def with_text(documents: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the same pieces without blank ones at the beginning of a document; drop blank documents."""
    waiting = False
    for begins, text in documents:
        waiting = waiting or begins
        if not waiting or text.strip():
            yield waiting, text
            waiting = False


def contiguous(documents: Iterable[Piece], shares: dict[str, float], total: int) -> Iterator[tuple[str, Piece]]:
    """Cut one document of `total` characters into contiguous parts with the given names and shares, in order.

    A part ends at a line end or a space, if there is one within half of the smallest share, at most 4,096 characters.
    """
    reach = min(4096, int(total * min(shares.values()) / 2))
    ends = [round(total * end) for end in itertools.accumulate(shares.values())]
    ends[-1] = total
    parts = list(zip(shares, ends, strict=True))
    position, begins = 0, True
    for _, text in documents:
        while text:
            name, end = parts[0]
            room = end - position
            if len(parts) == 1 or room >= len(text):
                yield name, (begins, text)
                position, begins, text = position + len(text), False, ""
                continue
            cut = _good_cut(text, max(room, 0), reach)
            if cut:
                yield name, (begins, text[:cut])
            parts, position, begins, text = parts[1:], position + cut, True, text[cut:]


def _good_cut(text: str, at: int, reach: int) -> int:
    for end in ("\n", " "):
        place = text.find(end, at, at + reach)
        if place >= 0:
            return place + 1
    return at
