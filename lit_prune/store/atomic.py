"""Atomic file writes: a file appears complete and synced to disk, or not at all. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 16 * 2**20


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a scratch path beside `target`, which is synced and renamed to `target` on success and removed on failure.

    The scratch file is in the folder of `target`, since a rename is atomic only within one file system. An `OSError`
    about the scratch file names `target` instead, which the user knows.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")  # hosts share process ids
    try:
        yield scratch
        sync(scratch)
        scratch.replace(target)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(scratch):
            error.filename, error.filename2 = str(target), None
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk, so that a power failure does not lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def preallocate(file: BinaryIO, size: int) -> None:
    """Give an empty file `size` bytes on disk.

    Raises:
        OSError: if the disk is full, now rather than at a later write through a memory map.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _CHUNK):  # macOS: truncate alone allocates no blocks
        file.write(bytes(min(_CHUNK, size - start)))
    file.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def remove_scratch(folder: Path) -> None:
    """Remove scratch files of killed processes in a folder and its subfolders."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)
