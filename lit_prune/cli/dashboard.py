"""`lit-prune dashboard`: a workspace and a report of a table in Weights & Biases, as files or on the server."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lit_prune.cli.process import Verb
from lit_prune.config import ConfigError, renames
from lit_prune.config.overrides import parents_of
from lit_prune.config.profiles import RECORDS
from lit_prune.config.table import Table
from lit_prune.escape import printable
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.render.files import markdown, write_texts
from lit_prune.store import DEFAULT_ROOT, Store

if TYPE_CHECKING:
    from lit_prune.integrations.wandb.specs import Board


@tyro.conf.configure(tyro.conf.UseAppendAction)
@dataclasses.dataclass(frozen=True)
class CliArgs(TableRequest):
    """Write the Weights & Biases workspace and report of a table as JSON files; with an API key, publish them or upload
    offline runs. The flags that select cells are those of `lit-prune table`."""

    table: tyro.conf.Positional[str] = tyro.MISSING
    """Table, e.g. loss_ablation."""
    command: tyro.conf.Positional[Literal["write", "sync"]] = "write"
    """write writes workspace.json and report.json; sync uploads the offline runs of the cells."""
    store: str = DEFAULT_ROOT
    """Folder of all results."""
    records: Path = RECORDS
    """Folder of the records, used if the store has no finished cell of the table."""
    entity: str = os.environ.get("WANDB_ENTITY", "")
    """User or team that owns the project; default: the owner of the API key."""
    project: str = os.environ.get("WANDB_PROJECT", "lit-prune")
    """W&B project of the runs."""
    publish: bool = False
    """With write: also save workspace and report on the server; this replaces those published before."""


def run(flags: CliArgs) -> int:
    """Write, publish or send; return 1 if the server refused something."""
    if flags.command == "sync" and flags.publish:
        raise ConfigError("--publish goes with write; sync sends runs")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb_workspaces is not installed (pip install 'lit-prune[dashboards]')")
    if flags.command == "sync" or flags.publish:
        from lit_prune.integrations.wandb.server import require_key

        require_key()
    from lit_prune.registry import table_of

    store = Store(flags.store)
    table, found = requested_entries(table_of(flags.table), flags, store)
    if flags.command == "write" and not flags.publish:
        return _write(flags, table, found, store)
    from lit_prune.integrations.wandb.server import failures

    try:
        return (_sync if flags.command == "sync" else _write)(flags, table, found, store)
    except failures() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"error: the W&B server: {printable(reason)}", file=sys.stderr)
        return 1


def _write(flags: CliArgs, table: Table, found: list[Entry], store: Store) -> int:
    from lit_prune.integrations.wandb import specs as specs

    cells = tuple(entry for entry in found if not entry.reference)
    board = specs.Board(table, Path(flags.profile).stem, cells, flags.project, flags.entity, flags.changes)
    answer = _answer(flags, table, found, store)
    folder = flags.folder(table, store) / "dashboard"
    texts = {
        folder / "workspace.json": specs.view_text(specs.workspace_of(board)),
        folder / "report.json": specs.page_text(specs.report_of(board, answer)),
    }
    store.check_writable(folder)
    write_texts(folder, texts)
    for path in texts:
        print(printable(f"written: {path}"))
    if flags.publish:
        return _publish(board, answer, folder / "published.json")
    again = shlex.join(["lit-prune", "dashboard", table.name, "sync", *_words(flags)])
    print(f"next, with a W&B key: {again}; then the same with --publish in place of sync")
    return 0


def _words(flags: CliArgs) -> list[str]:
    """Return the command-line words that repeat this request."""
    names = [
        name for name in ("profile", "store", "project", "entity") if getattr(flags, name) != getattr(CliArgs, name)
    ]
    return [*(word for name in names for word in (f"--{name}", getattr(flags, name))), *flags.changes]


def _answer(flags: CliArgs, table: Table, found: list[Entry], store: Store) -> str:
    """Return the paper's table and ours with the verdicts, as Markdown, of the store, or as recorded."""
    from lit_prune.report import assemble

    report = assemble(table, flags.profile, flags.settings, found, store, flags=flags.selection)
    record = flags.records / table.name / flags.profile / "report.md"
    if not flags.changes and not report.summary["n"].any() and record.exists():
        return record.read_text()
    return markdown(report)


def _publish(board: Board, answer: str, memory: Path) -> int:
    from lit_prune.integrations.wandb.server import publish

    for name, url in publish(board, answer, memory).items():
        print(f"published: {name} {url}")
    return 0


def _sync(flags: CliArgs, table: Table, found: list[Entry], store: Store) -> int:
    from lit_prune.integrations.wandb.server import bring_up, reach

    reach()
    addresses = {key for entry in found for key in _addresses(entry)}
    brought = bring_up(addresses, store, flags.project, flags.entity)
    print(f"{table.name}: {brought}")
    return 1 if brought.refused or brought.unreadable else 0


def _addresses(entry: Entry) -> list[str]:
    """Return the addresses of a cell and of its parents."""
    return [entry.key, *(dataclasses.replace(entry, cell=parent).key for parent in parents_of(entry.cell))]


VERB = Verb("dashboard", CliArgs, run, renamed=renames.FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
