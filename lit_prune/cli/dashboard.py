"""Dashboards of a table in Weights & Biases: a workspace of its runs, and a report with the paper's table and ours.

python -m analysis.dashboard loss_ablation              # both as JSON files, no key needed
python -m analysis.dashboard loss_ablation sync         # bring up the runs that were made offline
python -m analysis.dashboard loss_ablation --publish    # save both on the server, over those published before

Given --profile, --set, --also, --only and --seeds of the table's own command, it is about the cells those ask for.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lit_prune.cli.process import begin
from lit_prune.cli.request import TableRequest, asked_entries, check_words
from lit_prune.config import ConfigError
from lit_prune.config.overrides import sources_of
from lit_prune.config.profiles import RECORDS
from lit_prune.config.table import Table
from lit_prune.escape import printable
from lit_prune.pipeline.expand import Entry
from lit_prune.render.files import markdown, write_texts
from lit_prune.store import DEFAULT_ROOT, Store

if TYPE_CHECKING:
    from lit_prune.integrations.wandb.specs import Board


@dataclasses.dataclass(frozen=True)
class CliArgs(TableRequest):
    """Dashboards of a table in Weights & Biases, as files, and on a server where there is a key."""

    table: tyro.conf.Positional[str] = tyro.MISSING
    """Name of the table, e.g. loss_ablation."""
    command: tyro.conf.Positional[Literal["write", "sync"]] = "write"
    """write makes workspace.json and report.json; sync sends, once, each run of the cells that was made offline."""
    store: str = DEFAULT_ROOT
    """Folder where everything computed is kept."""
    records: Path = RECORDS
    """Folder of the records, which stand in for what the store does not hold."""
    entity: str = os.environ.get("WANDB_ENTITY", "")
    """User or team that owns the project; by default the one that the key belongs to."""
    project: str = os.environ.get("WANDB_PROJECT", "lit-prune")
    """Project of the runs."""
    publish: bool = False
    """Save workspace and report on the server too, over those published before."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all is well, 1 the server did not take all, 2 a bad request."""
    try:
        check_words(argv)
        flags = tyro.cli(CliArgs, args=argv, prog="python -m analysis.dashboard")
        begin("dashboard: reading the request", argv)
        return _run(flags)
    except (ConfigError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2


def _run(flags: CliArgs) -> int:
    if flags.command == "sync" and flags.publish:
        raise ConfigError("--publish goes with write; sync sends runs")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb_workspaces is not installed (pip install 'lit-prune[dashboards]')")
    if flags.command == "sync" or flags.publish:
        from lit_prune.integrations.wandb.server import require_key

        require_key()
    from lit_prune.report.load import table_of

    store = Store(flags.store)
    table, found = asked_entries(table_of(flags.table), flags, store)
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
    again = shlex.join(["python", "-m", "lit_prune.cli.dashboard", table.name, "sync", *_words(flags)])
    print(f"next, with a W&B key: {again}; then the same with --publish in place of sync")
    return 0


def _words(flags: CliArgs) -> list[str]:
    """What was asked for, as words of the command that asks the same again."""
    names = [
        name for name in ("profile", "store", "project", "entity") if getattr(flags, name) != getattr(CliArgs, name)
    ]
    return [*(word for name in names for word in (f"--{name}", getattr(flags, name))), *flags.changes]


def _answer(flags: CliArgs, table: Table, found: list[Entry], store: Store) -> str:
    """The paper's table and ours with the verdicts, as Markdown, of the store, or as recorded."""
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
    """Those of a cell and of the sources it is cut from."""
    return [entry.key, *(dataclasses.replace(entry, cell=source).key for source in sources_of(entry.cell))]


if __name__ == "__main__":
    raise SystemExit(main())
