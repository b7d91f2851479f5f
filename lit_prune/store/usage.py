"""Disk usage of a store, and the nodes that no table needs. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.store.activity import WORKERS
from lit_prune.store.address import CACHE, STAGES
from lit_prune.store.lease import Locked
from lit_prune.store.store import IDENTICAL, LEASES, Node, Store

DAMAGED = "damaged"
"""Folder of damaged nodes, which were computed again."""
FORMER_CACHE = "teaching"
"""Folder of the caches of teacher outputs of version 0.1. Nothing reads them."""

_NODE = ("config.json", "result.json")
"""Files by which a folder is recognised as a node."""


@dataclass(frozen=True)
class Usage:
    """A node of a store, or another folder in it."""

    kind: str
    """Stage of the node, or name of the folder."""
    folder: Path
    num_bytes: int
    """Bytes on disk."""
    done: bool

    @property
    def node(self) -> Node:
        """The node in this folder."""
        return Node(self.folder)


def usage(store: Store) -> list[Usage]:
    """Return the nodes of all stages and the other folders of a store, largest first."""
    found = []
    for kind in (path for path in store.root.iterdir() if path.is_dir() and path.name not in (LEASES, WORKERS)):
        nodes = [path for path in kind.iterdir() if any((path / name).is_file() for name in _NODE)]
        found += [Usage(kind.name, path, size_of(path), (path / "result.json").is_file()) for path in nodes]
        if not nodes and (num_bytes := size_of(kind)):
            found.append(Usage(kind.name, kind, num_bytes, True))
    return sorted(found, key=lambda one: (-one.num_bytes, str(one.folder)))


def size_of(folder: Path) -> int:
    """Return the disk space in bytes of all files below a folder."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def unneeded(store: Store, cells: Iterable[str], recipes: Iterable[Mapping[str, Any]]) -> list[Usage]:
    """Return the nodes that could be freed, largest first.

    A node is kept if it is one of the `cells` (addresses), or upstream of one of them or of the `recipes` (identities
    of cells that need not be in the store). Caches of teacher outputs are kept only for unfinished cells, and notes of
    identical students only with the cell that they name. Damaged nodes and caches of version 0.1 are never kept.
    Evaluations of models, reports and W&B runs are always kept.
    """
    wanted = [store.root / "cell" / address for address in cells]
    roots = [dict(about) for about in recipes] + [about for folder in wanted if (about := Node(folder).config)]
    parents = list(_with_parents(roots))
    open_cells = [Node(folder).config for folder in wanted if not (folder / "result.json").is_file()]
    kept = set(wanted)
    for one in usage(store):
        about = one.node.config
        if one.kind == CACHE:
            needed = any(_same(about, cell, ("teacher", "corpus")) for cell in open_cells)
        elif one.kind == IDENTICAL:
            needed = store.root / "cell" / str((one.node.result or {}).get("cell")) in wanted
        elif one.kind in STAGES:
            needed = any(_comes_before(about, cell) for cell in parents)
        else:
            needed = one.kind not in (DAMAGED, FORMER_CACHE)
        if needed:
            kept.add(one.folder)
    return [one for one in usage(store) if one.folder not in kept]


def free(store: Store, found: Iterable[Usage]) -> Iterator[tuple[Usage, bool]]:
    """Remove nodes; yield each with whether it was removed. Nodes that another process holds are kept."""
    for one in found:
        try:
            store.remove(one.folder)
        except Locked:
            yield one, False
        else:
            yield one, True


def _with_parents(cells: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the identities of cells and of all their parents."""
    for cell in cells:
        yield cell
        if cell.get("source"):
            yield from _with_parents([cell["source"]])


def _comes_before(about: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Return whether a node is upstream of a cell or the cell itself: all sections of the node are the cell's."""
    stage = about.get("stage")
    if stage in ("tokenizer", "teacher", "tokens"):
        texts = [cell.get("corpus"), (cell.get("evaluation") or {}).get("second")]
        teacher = {name: value for name, value in (cell.get("teacher") or {}).items() if name != "correction"}
        return about.get("teacher") == teacher and (stage != "tokens" or about.get("corpus") in texts)
    sections = [name for name in STAGES.get(str(stage), ()) if name in about or name in cell]
    return bool(sections) and _same(about, cell, sections)


def _same(about: Mapping[str, Any], cell: Mapping[str, Any], sections: Iterable[str]) -> bool:
    return all(about.get(name) == cell.get(name) for name in sections)
