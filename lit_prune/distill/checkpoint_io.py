"""Atomic, synced checkpoints with a digest, which is verified before a run resumes."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lit_prune.store.atomic import atomic_path
from lit_prune.store.integrity import SHARDS, sha256_of

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


def resumable(path: Path, *, sharded: bool = False) -> Path | None:
    """Return the path of an intact checkpoint, else None; remove and report a damaged one.

    Unless shards are wanted, a sharded checkpoint is replaced by one file. The other way round there is no need.
    """
    if not path.exists():
        return None
    problem = _damage(path) or _damage_of_shards(path)
    if problem:
        remove_checkpoint(path)
        print(f"damaged: {path} ({problem}); removed, the run starts from its first step", file=sys.stderr)
        return None
    if not sharded and (path.parent / SHARDS).exists():
        _put_together(path)
    return path


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint with its shards, if it exists."""
    path.unlink(missing_ok=True)
    shutil.rmtree(path.parent / SHARDS, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint as it was saved; its tensors are read from disk when they are used."""
    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=False)
    assert isinstance(checkpoint, dict)
    return checkpoint


def renamed(optimizer: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with other names of its parameters."""
    groups = [{**group, "params": [names[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {names[name]: state for name, state in optimizer["state"].items()}, "param_groups": groups}


def _put_together(path: Path) -> None:
    """Replace a sharded checkpoint by one file, in which parameters of the optimizer have numbers."""
    checkpoint = read(path)
    about = checkpoint.pop(SHARDS, None)
    if about is not None:
        shards = path.parent / SHARDS / about["folder"]
        dcp_to_torch_save(shards, shards / "whole.pt")
        states = read(shards / "whole.pt")
        names = [name for group in states["optimizer"]["param_groups"] for name in group["params"]]
        optimizer = renamed(states["optimizer"], {name: number for number, name in enumerate(names)})
        whole = {**checkpoint, "state_dict": states["state_dict"], "optimizer_states": [optimizer]}
        AtomicCheckpointIO().save_checkpoint(whole, path)
    shutil.rmtree(path.parent / SHARDS)


def _damage_of_shards(path: Path) -> str | None:
    """Return what is wrong with the shards of a checkpoint, or None."""
    if not (path.parent / SHARDS).exists():
        return None
    about = read(path).get(SHARDS)
    if about is None:
        return None
    folder = path.parent / SHARDS / about["folder"]
    for name, digest in about["digests"].items():
        if not (folder / name).exists() or sha256_of(folder / name) != digest:
            return f"{name} is missing or has another digest"
    return None


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
