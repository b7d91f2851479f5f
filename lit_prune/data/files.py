"""Local files of a corpus: which are read, how they are opened, and their digest. No torch."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO, cast

from lit_prune.config import ConfigError, expand

KINDS = {
    ".txt": "text", ".md": "text", ".tokens": "wikitext", ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".csv": "csv", ".parquet": "parquet",
}  # fmt: skip
"""Suffix -> how a file is read; `.gz` and `.zst` may follow all suffixes but `.parquet`."""

SUFFIXES = (*KINDS, ".gz", ".zst")
"""All suffixes, for messages."""

# Kind and version of reading, part of a file's digest. Raise it when a kind gives other documents or texts.
_READING = {
    "text": "text, a document a file", "wikitext": "text, a document an article", "json": "json 2", "csv": "csv",
    "parquet": "parquet 2",
}  # fmt: skip

_CHUNK = 1 << 20
_BEGINNING = 4096
_SHOWN = 3

log = logging.getLogger(__name__)


class Digest(Protocol):
    """A hash in progress."""

    def update(self, data: bytes, /) -> None: ...


def kind_of(path: Path) -> str | None:
    """Return how a file is read; None for files that lit_prune does not read."""
    if path.suffix in (".gz", ".zst"):
        kind = KINDS.get(Path(path.stem).suffix)
        return None if kind == "parquet" else kind
    return KINDS.get(path.suffix)


def local_files(source: str) -> list[Path]:
    """Return the files of a local source, sorted by name; an empty list if the source is not on this machine.

    Hidden files and folders (such as `.git`) and empty files are skipped. In a folder with other texts,
    Markdown files are taken for their description and ignored.

    Raises:
        ConfigError: if the path is empty, or exists and holds no text that lit_prune reads.
    """
    if not source.strip():
        raise ConfigError(f"corpus.path: must be a built-in text, a file, a folder or a hub data set, got {source!r}")
    files, _ = _listed(expand(source))
    if expand(source).exists() and not files:
        raise ConfigError(f"corpus.path: {source} holds no text (allowed: {' '.join(SUFFIXES)})")
    read = [path for path in files if path.stat().st_size]
    if files and not read:
        raise ConfigError(f"corpus.path: {source} is empty")
    return read


def warn_of_ignored(source: str) -> None:
    """Warn of the files in a folder that are not read."""
    root = expand(source)
    _, ignored = _listed(root)
    if ignored:
        names = [str(path.relative_to(root)) for path in ignored[:_SHOWN]]
        rest = f" and {len(ignored) - _SHOWN} more" if len(ignored) > _SHOWN else ""
        log.warning("corpus.path: %s: ignored %s%s", source, ", ".join(names), rest)


def _listed(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that are read and the files that are ignored."""
    if not root.is_dir():
        return ([root], []) if root.is_file() and kind_of(root) else ([], [])
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    files = [path for path in found if kind_of(path)]
    if any(not _is_markdown(path) for path in files):
        files = [path for path in files if not _is_markdown(path)]
    return files, [path for path in found if path not in set(files)]


def _is_markdown(path: Path) -> bool:
    return ".md" in path.suffixes[-2:] and kind_of(path) == "text"


class _Hashing(io.RawIOBase):
    """A binary stream that updates a digest with all bytes read."""

    def __init__(self, raw: Any, digest: Digest) -> None:
        self.raw, self.digest, self.size = raw, digest, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self.size += len(data)
        return len(data)


@contextlib.contextmanager
def opened(path: Path, digest: Digest) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed, and add its bytes, kind and size to `digest`.

    On exit the remaining bytes are read too. Kind and size are part of the digest because the same bytes, divided into
    other files or read in another way, are different documents.

    Raises:
        ConfigError: if the file cannot be read, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            hashing = _Hashing(_unpacked(path, file), digest)
            if kind_of(path) == "parquet":  # read from its end: hash the open file afterwards
                yield file
                file.seek(0)
            else:
                yield cast(BinaryIO, io.BufferedReader(hashing, _CHUNK))
            while hashing.read(_CHUNK):
                pass
    except UnicodeDecodeError as error:
        raise ConfigError(f"corpus.path: {path} is not UTF-8 text ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"corpus.path: {path} cannot be read ({first_line(error)})") from None
    digest.update(f"{_READING[cast(str, kind_of(path))]} {hashing.size}".encode())


def beginning(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed; empty if it cannot be read, which `opened` reports later."""
    with contextlib.suppress(OSError, EOFError, zlib.error), path.open("rb") as file:
        return bytes(_unpacked(path, file).read(_BEGINNING))
    return b""


def _unpacked(path: Path, file: BinaryIO) -> Any:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if path.suffix == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(file, "zstd")
    return file


@contextlib.contextmanager
def opened_text(path: Path, digest: Digest, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file as `opened` does, without the byte order mark; `newline` as for `open`.

    Raises:
        ConfigError: as `opened`.
    """
    with opened(path, digest) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
        yield text
        text.detach()  # keep it open: `opened` reads the rest


def add_file(path: Path, digest: Digest) -> None:
    """Add a file to a digest and check that text is UTF-8.

    Raises:
        ConfigError: as `opened`.
    """
    with opened(path, digest) as file:
        if kind_of(path) != "parquet":
            decoder = codecs.getincrementaldecoder("utf-8")()
            while piece := file.read(_CHUNK):
                decoder.decode(piece)
            decoder.decode(b"", final=True)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
