"""The folder of what is made once per machine and can be made again, such as a text that is slow to read. No torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lit_prune.config import ConfigError


def cache_folder() -> Path:
    """Return `LIT_PRUNE_CACHE`, or else `lit_prune` in `XDG_CACHE_HOME` (default: ~/.cache)."""
    named = os.environ.get("LIT_PRUNE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lit_prune"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder of the cache, created if it is missing; wait while another process holds it.

    The kernel lets go of the folder when the process dies.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(
            f"LIT_PRUNE_CACHE: must be a folder that can be written, got {folder} ({error.strerror or error})"
        ) from None
