"""Integrity of finished nodes: record the sizes and digests of files with the result, and verify them. No torch."""

from __future__ import annotations

import functools
import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_prune.config import EVIDENCE
from lit_prune.store.address import CACHE
from lit_prune.store.atomic import sync

RECORD = "integrity"
"""Key of the record in result.json."""
SHARDS = "shards"
"""Folder beside a checkpoint, and the key in it of the subfolder that holds its shards and of their sha256."""
LEFTOVERS = ("last.ckpt", SHARDS, "windows.*csv", "error.json", "traceback.txt")
"""Patterns of temporary files and folders of an unfinished node, removed once its result is written."""
FORMAT = 2
"""`store_format` in env.json of nodes whose result has a record; older stores have no record."""
_SMALL = 2**20
"""Size in bytes up to which a file is always hashed; larger ones are hashed only if `deep`."""

_MODEL = ("model/config.json", "model/*.safetensors")
_TOKENS = ("tokens.json", "train.bin", "validation.bin", "calibration.bin")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "tokens": _TOKENS,
    "teacher": (*_MODEL, *(f"tokens/{name}" for name in _TOKENS)),
    "correction": _MODEL,
    "student": _MODEL,
    "benchmark": ("documents.parquet",),
    **{stage: (f"{stage}.safetensors",) for stage in EVIDENCE},
}
"""Stage -> files that a node without a record must have; a retrained cell must have a model too."""


def sealed(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Sync all files in `folder` to disk and return `result` with their sizes and sha256 digests."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if SHARDS in name.split("/"):
            continue
        if not path.name.startswith(".") and name != "result.json" and not any(map(path.match, LEFTOVERS)):
            sync(path)
            files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    plain = json.loads(json.dumps(result))
    return {**plain, RECORD: {"files": files, "sha256": _sha256_of_json({"result": plain, "files": files})}}


class Reading(NamedTuple):
    """A node as it is read once: its result, or what is wrong with its files; neither if it is not done."""

    result: dict[str, Any] | None
    damage: str | None


def read(folder: Path, *, deep: bool) -> Reading:
    """Return the result of a node without the record, as it was passed to `sealed`, if its files are intact.

    Large files are hashed only if `deep`, and once per process while size and modification time are the same.
    """
    content = read_json(folder / "result.json")
    if content is None:
        return Reading(None, "result.json cannot be read" if (folder / "result.json").exists() else None)
    record = content.pop(RECORD, None)
    problem = _damage_without_digests(folder) if record is None else _damage(folder, content, record, deep)
    return Reading(content, None) if problem is None else Reading(None, problem)


def _damage(folder: Path, result: Mapping[str, Any], record: Any, deep: bool) -> str | None:
    """Return how a result or the files of a node differ from its record; None if they do not."""
    try:
        files, digest = record["files"], record["sha256"]
        if _sha256_of_json({"result": result, "files": files}) != digest:
            return "result.json has another digest"
        problems = (_problem(folder / name, about, deep) for name, about in files.items())
        return next((f"{name} {problem}" for name, problem in zip(files, problems, strict=True) if problem), None)
    except (KeyError, TypeError, AttributeError):
        return "result.json has an unreadable record of files"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if the file cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _problem(path: Path, about: Mapping[str, Any], deep: bool) -> str | None:
    try:
        status = path.stat()
    except OSError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is missing"
    size = status.st_size
    if size != about["size"]:
        return f"has {size} bytes instead of {about['size']}"
    if (deep or size <= _SMALL) and sha256_of(path) != about["sha256"]:
        return "has another digest"
    return None


def _damage_without_digests(folder: Path) -> str | None:
    """Return what is wrong with a node without a record: unreadable JSON, a missing or truncated file; else None."""
    from safetensors import SafetensorError, safe_open

    config = read_json(folder / "config.json")
    if config is None and (folder / "config.json").exists():
        return "config.json cannot be read"
    env = read_json(folder / "env.json")
    if env is None and (folder / "env.json").exists():
        return "env.json cannot be read"
    if (env or {}).get("store_format") == FORMAT:
        return "result.json has no record of files"
    stage = folder.parent.name
    if stage == CACHE:  # a cache is cheap to rebuild, so it is not trusted without digests
        return "has no digests"
    required = _REQUIRED.get(stage, ())
    if stage == "cell" and ((config or {}).get("distill") or {}).get("steps"):
        required = _MODEL
    for pattern in required:
        if not any(folder.glob(pattern)):
            return f"{pattern} is missing"
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "np"):
                pass
        except (OSError, SafetensorError):
            return f"{path.relative_to(folder)} is truncated"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once per process as long as it does not change."""
    status = path.stat()
    return _hashed(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _hashed(path: Path, *unchanged: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
