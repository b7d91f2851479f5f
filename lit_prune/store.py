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
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from lit_prune import cpu, integrity
from lit_prune.address import digest, identity, key
from lit_prune.atomic import remove_scratch, write_json
from lit_prune.config import Cell, ConfigError, expand

_VERSIONS = (
    "lit-prune", "torch", "lightning", "transformers", "tokenizers", "datasets", "torchmetrics", "numpy", "scipy",
    "pandas",
)  # fmt: skip
CHECKS = "checks.csv"
"""Validation losses of a student on its way, in the folder of its cell: step, lm_loss, kd_loss."""
DEFAULT_ROOT = os.environ.get("LIT_PRUNE_STORE", "store")
"""Folder of a store that no flag names."""
# Below this a run would be cut by a full disk, which helps nobody.
_ROOM_NEEDED = 200 * 2**20


class Busy(RuntimeError):
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

    def fail(self, message: str) -> None:
        """Remember why the node failed; it is tried again by the next run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "error.json", {"error": message})

    def finish(self, result: Mapping[str, Any], **env: Any) -> dict[str, Any]:
        """Mark the node as done; unfinished state goes."""
        remove_scratch(self.folder)
        write_json(self.folder / "env.json", self.env | {"store_format": integrity.FORMAT, "finished": _now()} | env)
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
        """The node of a stage of a cell, which may not exist yet."""
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
                    raise Busy(f"{kind} {node.key} is being computed by another process") from None
                if not _is_still(lock, node.folder / ".lock"):
                    continue
                problem = node.damage(deep=True)
                if problem is not None:
                    self._set_aside(node, problem)
                    continue
                if node.result is None:
                    remove_scratch(node.folder)
                    write_json(node.folder / "config.json", about)
                    write_json(node.folder / "env.json", environment())
                yield node
                return

    def discard(self, kind: str, about: Mapping[str, Any]) -> None:
        """Remove a node and all its files once no other process holds it."""
        with self.hold(kind, about, wait=True) as node:
            (node.folder / "result.json").unlink(missing_ok=True)  # first: killed after it, the node is not done
            shutil.rmtree(node.folder)

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
        """See that the store, or one folder of it, can be written and has room.

        Raises:
            ConfigError: it cannot, or has not.
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
        """The one node whose address begins with `prefix`.

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


def environment() -> dict[str, Any]:
    """Commit, versions, hardware and command: what a result depends on beside its address."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "started": _now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cpu": cpu.applied(),
        "versions": {name: _version(name) for name in _VERSIONS},
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str | None:
    """The commit of the checkout, with "+" where it was changed since; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _is_still(lock: IO[str], path: Path) -> bool:
    """Whether an open lock file is the one at `path`, whose folder may have been moved away by its last holder."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
