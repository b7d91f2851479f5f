"""`lit-prune store`: list what takes disk space in a store, and remove what no table needs. No torch."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.filesize import decimal
from rich.prompt import Confirm
from rich.table import Table as Grid

from lit_prune.cli.process import Output, Verb
from lit_prune.config import ConfigError
from lit_prune.config.profiles import RECORDS
from lit_prune.escape import terminal_text
from lit_prune.store import DEFAULT_ROOT, Store
from lit_prune.store.address import identity
from lit_prune.store.usage import Usage, free, unneeded, usage

_LARGEST = 10
"""Nodes that `ls` lists one by one."""


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """List what takes disk space in a store, or remove what neither the records nor the named tables need."""

    action: tyro.conf.Positional[Literal["ls", "gc"]] = "ls"
    """ls lists disk usage. gc lists what it would remove, asks for confirmation, and removes it: cells and stages that
    are not needed, cached teacher outputs that no unfinished cell needs, and damaged results. It never removes reports,
    evaluations, W&B runs, or what another process is computing."""
    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """gc only: tables to keep, e.g. loss_ablation, or all. Keeps the cells of every request for these tables in this
    store, and the stages from which they were computed."""
    store: str = DEFAULT_ROOT
    """Folder of the store."""
    records: Path = RECORDS
    """Folder of the records. Their cells, and the stages from which they were computed, are kept."""
    yes: bool = False
    """gc only: remove without asking."""


def run(flags: CliArgs) -> int:
    """List or free."""
    store = Store(flags.store)
    if not store.root.is_dir():
        raise ConfigError(f"--store: must be an existing folder, got {store.root}")
    if flags.action == "ls":
        if flags.tables:
            raise ConfigError(f"ls: must be given no table, got {' '.join(flags.tables)}")
        return _list(store)
    return _collect(flags, store)


def _list(store: Store) -> int:
    console, found = Output(), usage(store)
    console.print(_by_kind(found))
    largest = Grid("largest", "size", "", box=None, pad_edge=False, header_style="bold")
    for one in found[:_LARGEST]:
        name = one.folder.relative_to(store.root).as_posix()
        largest.add_row(terminal_text(name), decimal(one.num_bytes), "" if one.done else "unfinished")
    console.print(largest)
    total, left = sum(one.num_bytes for one in found), shutil.disk_usage(store.root).free
    console.print(terminal_text(f"{store.root}: {decimal(total)}; the disk has {decimal(left)} left"), soft_wrap=True)
    return 0


def _by_kind(found: Iterable[Usage]) -> Grid:
    grid = Grid("stage", "nodes", "unfinished", "size", box=None, pad_edge=False, header_style="bold")
    nodes, unfinished, sizes = Counter[str](), Counter[str](), Counter[str]()
    for one in found:
        nodes[one.kind] += 1
        unfinished[one.kind] += not one.done
        sizes[one.kind] += one.num_bytes
    for kind, size in sizes.most_common():
        grid.add_row(terminal_text(kind), str(nodes[kind]), str(unfinished[kind] or ""), decimal(size))
    return grid


def _collect(flags: CliArgs, store: Store) -> int:
    """Free what is not needed; return 1 if something could not be freed."""
    console = Output()
    found = _unneeded(flags, store)
    if not found:
        console.print("nothing to free")
        return 0
    total = decimal(sum(one.num_bytes for one in found))
    console.print(_by_kind(found))
    if not flags.yes:
        if not sys.stdin.isatty():
            raise ConfigError("--yes: must be given where nobody can be asked; nothing was freed")
        if not Confirm.ask(f"Free {len(found)} nodes, {total}?", console=console, default=False):
            console.print("nothing was freed")
            return 0
    kept = [one for one, removed in free(store, found) if not removed]
    for one in kept:
        console.print(terminal_text(f"kept, another process is computing it: {one.folder}"), soft_wrap=True)
    freed = sum(one.num_bytes for one in found) - sum(one.num_bytes for one in kept)
    console.print(f"freed {decimal(freed)} of {len(found) - len(kept)} nodes")
    return 0


def _unneeded(flags: CliArgs, store: Store) -> list[Usage]:
    """Return the nodes that neither the records nor the requests of the named tables need.

    Raises:
        ConfigError: if a record or a request cannot be read, so that its cells are unknown.
    """
    from lit_prune.registry import table_of
    from lit_prune.report.load import recorded, stored

    tables = None if "all" in flags.tables else [table_of(name).name for name in flags.tables]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reports = [one.report for one in (*recorded(flags.records), *stored(store, flags.records, tables))]
    if caught:
        raise ConfigError(f"{caught[0].message}; nothing was freed")
    cells = {str(key) for report in reports for key in report.tidy["key"]}
    return unneeded(store, cells, [identity(report.cell, "cell") for report in reports])


VERB = Verb("store", CliArgs, run, asks=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)
