"""The store: one folder (node) per address, written once, reused, and leased to one process at a time.

`store/<stage>/<key>/result.json` exists if and only if the node is done; it is written last, by an atomic rename, and
never changed. It records the size and sha256 of every file of the node. A node whose files differ from this record is
damaged: it counts as not done, and when claimed it is moved to `store/damaged/<stage>/` and computed again. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_prune.config import Cell, ConfigError, expand
from lit_prune.store import integrity, lease
from lit_prune.store.address import digest, identity, key
from lit_prune.store.atomic import remove_scratch, write_json, write_text
from lit_prune.store.environment import commit, environment, now
from lit_prune.store.failures import failure_of
from lit_prune.store.integrity import Reading
from lit_prune.store.lease import Lease

CHECKS = "checks.csv"
"""Validation losses of a student during training, in the folder of its cell: step, lm_loss, kd_loss."""
SEQUENCES = "sequences.parquet"
"""Losses of a student per validation sequence, in the folder of its cell. Columns: metric, sequence, loss (summed over
the scored tokens, in nats), tokens."""
PRUNING = "pruning"
"""Key in env.json of a student and its cells: tokens, FLOPs, seconds and peak memory of the pruning, with those of the
statistics that it reads."""
IDENTICAL = "identical"
"""Kind of nodes that name the cell which measured a student, and key in env.json of cells with an identical student:
that cell, and the commits of its attempts."""
DEFAULT_ROOT = os.environ.get("LIT_PRUNE_STORE", "store")
"""Default folder of the store."""
LEASES = "leases"
"""Folder of the leases on the nodes that processes are computing."""
# With less space a run would fail midway on a full disk.
_ROOM_NEEDED = 200 * 2**20


@dataclasses.dataclass(frozen=True)
class Node:
    """One entry of the store: the folder of an address."""

    folder: Path
    lease: Lease | None = dataclasses.field(default=None, compare=False, repr=False)
    """The lease on it, if this process holds it."""

    @property
    def key(self) -> str:
        """Address of the node."""
        return self.folder.name

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the node; None if it is not done or `damage` finds it damaged."""
        return self.read().result

    @property
    def verified(self) -> dict[str, Any] | None:
        """Result of the node, with large files verified too, once per process; use it before reading files."""
        return self.read(deep=True).result

    def read(self, *, deep: bool = False) -> Reading:
        """Return the result, or what is wrong with the files of a finished node; large ones are read only if `deep`."""
        return integrity.read(self.folder, deep=deep)

    def damage(self, *, deep: bool = False) -> str | None:
        """Return which file of a finished node is damaged and how, or None; large files are hashed only if `deep`."""
        return self.read(deep=deep).damage

    @property
    def error(self) -> str | None:
        """Error of the last attempt in one line; None if it did not fail."""
        if not (self.folder / "error.json").exists() or self.result is not None:
            return None
        failed = integrity.read_json(self.folder / "error.json") or {}
        return failed.get("error", "error.json cannot be read")

    @property
    def env(self) -> dict[str, Any]:
        """Content of env.json: where, when and how the node was computed."""
        return integrity.read_json(self.folder / "env.json") or {}

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json: the data that the address hashes."""
        return integrity.read_json(self.folder / "config.json") or {}

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write config.json from `about`, and append a new attempt to those in env.json."""
        self._check_lease()
        remove_scratch(self.folder)
        here = environment()
        # An attempt without recorded time left no checkpoint, so it did not contribute.
        before = [attempt for attempt in self.env.get("attempts", []) if attempt["seconds"]]
        attempt = {"started": here["started"], "commit": here["commit"], "seconds": 0.0}
        write_json(self.folder / "config.json", about)
        write_json(self.folder / "env.json", here | {"attempts": [*before, attempt]})

    def reopen(self) -> None:
        """Mark a finished node as not done and begin a new attempt."""
        (self.folder / "result.json").unlink()
        self.begin(self.config)

    def spend(self, seconds: float) -> None:
        """Record the duration of the current attempt so far, so that a kill does not lose it.

        Raises:
            Locked: if another process has taken the node over.
        """
        self._check_lease()
        write_json(self.folder / "env.json", self.env | {"attempts": self._attempts(seconds=seconds)})

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _attempts(self, **changes: Any) -> list[dict[str, Any]]:
        *before, last = self.env.get("attempts") or [{"started": now(), "commit": commit(), "seconds": 0.0}]
        return [*before, last | changes]

    def fail(self, message: str, error: BaseException | None = None) -> None:
        """Record an error in error.json and traceback.txt; the next run tries the node again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"error": message}
        if error is not None:
            write_text(self.folder / "traceback.txt", "".join(traceback.format_exception(error)))
            about |= failure_of(error).plain | {"traceback": "traceback.txt"}
        write_json(self.folder / "error.json", about)

    def finish(self, result: Mapping[str, Any], **env: Any) -> dict[str, Any]:
        """Mark the node as done and remove its temporary files; `seconds` are those of this attempt only.

        Raises:
            Locked: if another process has taken the node over.
        """
        self._check_lease()
        remove_scratch(self.folder)
        attempts = self._attempts(**{name: env[name] for name in ("commit", "seconds") if name in env})
        if "seconds" in env:
            env["seconds"] = round(sum(attempt["seconds"] for attempt in attempts), 2)
        about = {"store_format": integrity.FORMAT, "finished": now(), "attempts": attempts}
        write_json(self.folder / "env.json", self.env | about | env)
        write_json(self.folder / "result.json", integrity.sealed(self.folder, result))
        # Last: if killed before result.json is written, the node must keep its checkpoint.
        for leftover in integrity.LEFTOVERS:
            for path in [*self.folder.rglob(leftover)]:
                shutil.rmtree(path) if leftover == integrity.SHARDS else path.unlink(missing_ok=True)
        return dict(result)


def commits_of(env: Mapping[str, Any]) -> list[str | None]:
    """Return the distinct commits of the attempts in an env.json, in order, with those of a measurement taken over."""
    attempts = env.get("attempts") or [env]
    measured = env.get(IDENTICAL, {}).get("commits", [])
    return list(dict.fromkeys([*(attempt.get("commit") for attempt in attempts), *measured]))


class Store:
    """All results under one folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = expand(root)

    @property
    def mirror(self) -> Path:
        """Folder of W&B runs: $WANDB_DIR, else `wandb` in the store."""
        return expand(os.environ.get("WANDB_DIR") or self.root / "wandb")

    def node(self, cell: Cell, stage: str) -> Node:
        """Return the node of a stage of a cell, which may not exist yet."""
        return self.at(stage, key(cell, stage))

    def at(self, stage: str, address: str) -> Node:
        """Return the node of a stage at an address."""
        return Node(self.root / stage / address)

    def about(self, kind: str, about: Mapping[str, Any]) -> Node:
        """Return the node of one kind whose address hashes `about`."""
        return self.at(kind, digest(about))

    def lease_of(self, kind: str, address: str) -> Path:
        """Return the file of the lease on a node. Leases are apart from nodes, which are moved and removed."""
        return self.root / LEASES / f"{kind}-{address}"

    @contextlib.contextmanager
    def claim(self, cell: Cell, stage: str, *, wait: bool = False) -> Iterator[Node]:
        """Yield the node of a stage of a cell, leased to this process; the lease of a process that dies is free again.

        Raises:
            Locked: if another process holds it and `wait` is False.
            ConfigError: if the store cannot be written.
        """
        with self.hold(stage, identity(cell, stage), wait=wait) as node:
            yield node

    @contextlib.contextmanager
    def hold(self, kind: str, about: Mapping[str, Any], *, wait: bool = False) -> Iterator[Node]:
        """Yield the node of one kind whose address hashes `about`, leased to this process.

        Raises:
            Locked: if another process holds it and `wait` is False.
            ConfigError: if the store cannot be written.
        """
        folder = self.about(kind, about).folder
        self.check_writable(folder)
        with self._leased(folder, wait=wait) as held:
            node = Node(folder, held)
            problem = node.damage(deep=True)
            if problem is not None:
                self._set_aside(node, problem)
            folder.mkdir(parents=True, exist_ok=True)  # another process may have moved or removed it meanwhile
            if node.result is None:
                node.begin(about)
            yield node

    def remove(self, folder: Path) -> None:
        """Remove the folder of a node that no process holds.

        Raises:
            Locked: if another process holds it.
        """
        with self._leased(folder, wait=False), contextlib.suppress(FileNotFoundError):
            (folder / "result.json").unlink(missing_ok=True)  # first: a partly removed node must not count as done
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _leased(self, folder: Path, *, wait: bool) -> Iterator[Lease]:
        kind, address = folder.parent.name, folder.name
        path = self.lease_of(kind, address)
        path.parent.mkdir(exist_ok=True)
        with lease.hold(path, f"{kind} {address}", wait=wait) as held:
            yield held

    def _set_aside(self, node: Node, problem: str) -> None:
        """Move a damaged node, which this process holds, to the folder `damaged` and report it."""
        kind = node.folder.parent.name
        folder = self.root / "damaged" / kind
        folder.mkdir(parents=True, exist_ok=True)
        targets = (folder / f"{node.key}-{number}" for number in itertools.count(1))
        target = next(path for path in targets if not path.exists())
        shutil.move(node.folder, target)
        print(f"damaged: {node.folder} ({problem}); moved to {target}, computed again", file=sys.stderr)

    def check_writable(self, folder: Path | None = None) -> None:
        """Check that the store, or one folder of it, is writable and that the disk has enough free space.

        Raises:
            ConfigError: if it is not, or has not.
        """
        folder = folder or self.root
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(f"--store: {folder} cannot be written ({error.strerror})") from None
        free = shutil.disk_usage(self.root).free
        if free < _ROOM_NEEDED:
            raise ConfigError(
                f"--store: {self.root} has {free >> 20} MiB left; at least {_ROOM_NEEDED >> 20} are needed"
            )

    def find(self, prefix: str) -> Node:
        """Return the one node whose address begins with `prefix`.

        Raises:
            ConfigError: if there is none, or more than one.
        """
        found = sorted(p for p in self.root.glob(f"*/{prefix}*") if (p / "config.json").exists())
        if len(found) != 1:
            names = ", ".join(f"{p.parent.name}/{p.name}" for p in found[:5])
            raise ConfigError(
                f"{prefix!r} is the address of {f'several nodes: {names}' if found else 'no node'} in {self.root}"
            )
        return Node(found[0])
