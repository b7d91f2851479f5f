"""What was found: one folder an address, written once, found again, given to one process at a time.

`store/<stage>/<key>/result.json` exists if and only if the node is done; it is written last, by an atomic rename, and
never again. It records the size and sha256 of every file of the node. A node whose files differ from that record is
damaged: it is not done, moved to `store/damaged/<stage>/` when it is claimed, and computed again. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lit_prune.config import Cell, ConfigError, expand
from lit_prune.store import integrity
from lit_prune.store.address import digest, identity, key
from lit_prune.store.atomic import remove_scratch, write_json, write_text
from lit_prune.store.environment import commit, environment, now
from lit_prune.store.failures import failure_of

CHECKS = "checks.csv"
"""Validation losses of a student on its way, in the folder of its cell: step, lm_loss, kd_loss."""
SEQUENCES = "sequences.parquet"
"""Losses of a student on each validation sequence, in the folder of its cell: metric, sequence, loss (summed over the
scored tokens, in nats), tokens."""
DEFAULT_ROOT = os.environ.get("LIT_PRUNE_STORE", "store")
"""Folder of a store that no flag names."""
# Below this a run would be cut by a full disk, which helps nobody.
_ROOM_NEEDED = 200 * 2**20


class Locked(RuntimeError):
    """Another process is working on the node."""


@dataclasses.dataclass(frozen=True)
class Node:
    """The folder of one address."""

    folder: Path

    @property
    def key(self) -> str:
        """The address itself."""
        return self.folder.name

    @property
    def result(self) -> dict[str, Any] | None:
        """What the node found; None while it is not done, or where `damage` sees that it is damaged."""
        return self._result(deep=False)

    @property
    def verified(self) -> dict[str, Any] | None:
        """The result of a node whose files are about to be read: large files are hashed too, once per process."""
        return self._result(deep=True)

    def _result(self, deep: bool) -> dict[str, Any] | None:
        if self.damage(deep=deep) is not None:
            return None
        content = integrity.read_json(self.folder / "result.json")
        return None if content is None else integrity.unsealed(content)

    def damage(self, *, deep: bool = False) -> str | None:
        """Return which file of a finished node is damaged and how, or None; large files are hashed only if `deep`."""
        if not (self.folder / "result.json").exists():
            return None
        return integrity.damage(self.folder, deep=deep)

    @property
    def error(self) -> str | None:
        """Why the node failed when it was last tried, in one line."""
        if not (self.folder / "error.json").exists() or self.result is not None:
            return None
        failed = integrity.read_json(self.folder / "error.json") or {}
        return failed.get("error", "error.json cannot be read")

    @property
    def env(self) -> dict[str, Any]:
        """Where, when and how the node was done."""
        return integrity.read_json(self.folder / "env.json") or {}

    @property
    def config(self) -> dict[str, Any]:
        """What the address is made of."""
        return integrity.read_json(self.folder / "config.json") or {}

    @property
    def commits(self) -> list[str | None]:
        """The commits of the attempts that the node was computed in, each once, in order."""
        env = self.env
        attempts = env.get("attempts") or [env]
        return list(dict.fromkeys(attempt.get("commit") for attempt in attempts))

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write what the node is about and note one more attempt at it, in env.json beside those before."""
        remove_scratch(self.folder)
        here = environment()
        # An attempt that left neither time nor a checkpoint has no part in the result.
        before = [attempt for attempt in self.env.get("attempts", []) if attempt["seconds"]]
        attempt = {"started": here["started"], "commit": here["commit"], "seconds": 0.0}
        write_json(self.folder / "config.json", about)
        write_json(self.folder / "env.json", here | {"attempts": [*before, attempt]})

    def reopen(self) -> None:
        """Mark a finished node as not done, and note one more attempt at it."""
        (self.folder / "result.json").unlink()
        self.begin(self.config)

    def spend(self, seconds: float) -> None:
        """Record how long the attempt at hand has taken so far, so that a kill does not lose it."""
        write_json(self.folder / "env.json", self.env | {"attempts": self._attempts(seconds=seconds)})

    def _attempts(self, **changes: Any) -> list[dict[str, Any]]:
        *before, last = self.env.get("attempts") or [{"started": now(), "commit": commit(), "seconds": 0.0}]
        return [*before, last | changes]

    def fail(self, message: str, error: BaseException | None = None) -> None:
        """Record why the node failed, in error.json and traceback.txt; the next run tries it again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"error": message}
        if error is not None:
            write_text(self.folder / "traceback.txt", "".join(traceback.format_exception(error)))
            about |= failure_of(error).plain | {"traceback": "traceback.txt"}
        write_json(self.folder / "error.json", about)

    def finish(self, result: Mapping[str, Any], **env: Any) -> dict[str, Any]:
        """Mark the node as done and remove its unfinished state; `seconds` are those of this attempt alone."""
        remove_scratch(self.folder)
        attempts = self._attempts(**{name: env[name] for name in ("commit", "seconds") if name in env})
        if "seconds" in env:
            env["seconds"] = round(sum(attempt["seconds"] for attempt in attempts), 2)
        about = {"store_format": integrity.FORMAT, "finished": now(), "attempts": attempts}
        write_json(self.folder / "env.json", self.env | about | env)
        write_json(self.folder / "result.json", integrity.sealed(self.folder, result))
        # Only now: killed between the two, an unfinished node would begin again from nothing.
        for leftover in integrity.LEFTOVERS:
            (self.folder / leftover).unlink(missing_ok=True)
        return dict(result)


class Store:
    """All that was computed, under one folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = expand(root)

    @property
    def mirror(self) -> Path:
        """Folder in which W&B keeps its runs: where the environment wants them, else beside the cells."""
        return expand(os.environ.get("WANDB_DIR") or self.root / "wandb")

    def node(self, cell: Cell, stage: str) -> Node:
        """Return the node of a stage of a cell, which may not exist yet."""
        return Node(self.root / stage / key(cell, stage))

    @contextlib.contextmanager
    def claim(self, cell: Cell, stage: str, *, wait: bool = False) -> Iterator[Node]:
        """The node, held by this process alone; the kernel lets go of it when the process dies.

        Raises:
            Busy: another process holds it, and we do not `wait` for it.
            ConfigError: the store cannot be written.
        """
        with self.hold(stage, identity(cell, stage), wait=wait) as node:
            yield node

    @contextlib.contextmanager
    def hold(self, kind: str, about: Mapping[str, Any], *, wait: bool = False) -> Iterator[Node]:
        """The node of one kind whose address is made of `about`, held by this process alone.

        Raises:
            Busy: another process holds it, and we do not `wait` for it.
            ConfigError: the store cannot be written.
        """
        node = Node(self.root / kind / digest(about))
        while True:
            self.check_writable(node.folder)
            try:
                lock = (node.folder / ".lock").open("w")
            except FileNotFoundError:  # another process has just moved the folder away
                continue
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Locked(f"{kind} {node.key} is being computed by another process") from None
                if not _is_still(lock, node.folder / ".lock"):
                    continue
                problem = node.damage(deep=True)
                if problem is not None:
                    self._set_aside(node, problem)
                    continue
                if node.result is None:
                    node.begin(about)
                yield node
                return

    def remove(self, folder: Path) -> None:
        """Remove the folder of a node that no process holds.

        Raises:
            Locked: if another process holds it.
        """
        with contextlib.suppress(FileNotFoundError), (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"{folder} is being computed by another process") from None
            (folder / "result.json").unlink(missing_ok=True)  # first: if killed after it, the node is not done
            shutil.rmtree(folder)

    def _set_aside(self, node: Node, problem: str) -> None:
        """Move a damaged node, held by this process, out of the way and say so."""
        kind = node.folder.parent.name
        folder = self.root / "damaged" / kind
        folder.mkdir(parents=True, exist_ok=True)
        targets = (folder / f"{node.key}-{number}" for number in itertools.count(1))
        target = next(path for path in targets if not path.exists())
        shutil.move(node.folder, target)
        print(f"damaged: {node.folder} ({problem}); moved to {target}, computed again", file=sys.stderr)

    def check_writable(self, folder: Path | None = None) -> None:
        """Check that the store, or one folder of it, can be written and has room.

        Raises:
            ConfigError: if it cannot, or has not.
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
            ConfigError: none, or several.
        """
        found = sorted(p for p in self.root.glob(f"*/{prefix}*") if (p / "config.json").exists())
        if len(found) != 1:
            names = ", ".join(f"{p.parent.name}/{p.name}" for p in found[:5])
            raise ConfigError(
                f"{prefix!r} is the address of {f'several nodes: {names}' if found else 'no node'} in {self.root}"
            )
        return Node(found[0])


def _is_still(lock: IO[str], path: Path) -> bool:
    """Return whether an open lock file is the one at `path`, whose folder may have been moved away by its last
    holder."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False
