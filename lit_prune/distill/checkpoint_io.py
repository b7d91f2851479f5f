"""Atomic, synced checkpoints with a digest, which is verified before a run resumes."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_prune.store.atomic import atomic_path

_DIGITS = 64
_COMMENT_LENGTH = _DIGITS.to_bytes(2, "little")
_NO_COMMENT = bytes(2)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a scratch file beside its target and rename it.

    Lightning's own class writes to the system's temporary folder and copies the file from there: a small /tmp fails
    the run, and a killed process leaves the file behind.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_path(Path(path)) as scratch, scratch.open("wb+") as file:
                torch.save(checkpoint, file)
                _seal(file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides a full disk behind an internal check
                raise error.__context__ from None
            raise


def resumable(path: Path) -> Path | None:
    """Return the path of an intact checkpoint, else None; remove and report a damaged one."""
    if not path.exists():
        return None
    if problem := _damage(path):
        path.unlink()
        print(f"damaged: {path} ({problem}); removed, the run starts from its first step", file=sys.stderr)
        return None
    return path


def _seal(file: IO[bytes]) -> None:
    """Append the sha256 of a checkpoint as its zip comment; torch writes checkpoints as zip files."""
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    if file.read() != _NO_COMMENT:
        raise ValueError("a checkpoint must be a zip file without a comment")
    digest = _digest(file, file.tell() - len(_NO_COMMENT))
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_COMMENT_LENGTH + digest)


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    Without a digest, the CRC-32 checksums of its zip records are verified. torch.load verifies neither.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - len(_COMMENT_LENGTH) - _DIGITS
        file.seek(max(size, 0))
        comment = file.read()
        if size > 0 and comment.startswith(_COMMENT_LENGTH):
            return None if _digest(file, size) == comment.removeprefix(_COMMENT_LENGTH) else "it has another digest"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged archive raises several kinds
        return " ".join(str(error).split()) or type(error).__name__
    return None if broken is None else f"{broken} has another checksum"


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the hexadecimal sha256 of the first `size` bytes."""
    found = hashlib.sha256()
    file.seek(0)
    while size > 0:
        part = file.read(min(size, 2**20))
        found.update(part)
        size -= len(part)
    return found.hexdigest().encode()
