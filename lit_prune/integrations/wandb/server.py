"""Send offline runs and dashboards of a table to a Weights & Biases server, which needs an API key.

The only thing read from the server is whether a published dashboard still exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from lit_prune.config import ConfigError
from lit_prune.integrations.wandb import specs as specs
from lit_prune.store import Store
from lit_prune.store.atomic import write_json
from lit_prune.store.lease import is_held

_WANDB = [sys.executable, "-m", "wandb"]
_AT_ONCE = 4
"""Number of processes that inspect runs at once."""


def require_key() -> None:
    """Check that there is an API key.

    Raises:
        ConfigError: if it is missing or malformed.
    """
    # The server is to be reached, so an offline mode is ignored; wandb reads the variable at its first call.
    os.environ.pop("WANDB_MODE", None)
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except Exception as error:  # a wrong key and a wrong server address share no exception type
        raise ConfigError(f"W&B cannot be used: {' '.join(str(error).split())}") from None
    if not has_key:
        raise ConfigError("there is no W&B key; set WANDB_API_KEY, or keep one by `wandb login`")


def reach() -> None:
    """Check that the server answers and accepts the key; `wandb sync` would retry for ever.

    Raises:
        wandb.errors.Error: if it does not.
    """
    import wandb

    wandb.Api()


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions raised if a server does not answer or refuses a request."""
    import wandb

    return (wandb.errors.Error, TimeoutError, ConnectionError)


@dataclasses.dataclass(frozen=True)
class Brought:
    """Outcome of sending the offline runs of a table; a resumed run has a folder per part."""

    sent: list[Path]
    before: list[Path]
    """Sent by an earlier call."""
    running: list[Path]
    """Still written to."""
    empty: list[Path]
    """Killed before their first record; a single one makes `wandb sync` fail for all others."""
    unreadable: list[Path]
    """Not in W&B's format; they make `wandb sync` fail too."""
    refused: list[Path]
    others: list[Path]
    """Runs of other tables, profiles or settings."""

    def __str__(self) -> str:
        parts = (
            (self.sent, "sent"), (self.before, "sent before"), (self.running, "still running"),
            (self.empty, "empty"), (self.unreadable, "unreadable"), (self.refused, "not taken by the server"),
        )  # fmt: skip
        counts = ", ".join(f"{len(runs)} {what}" for runs, what in parts if runs) or "no offline runs"
        return counts + f" ({len(self.others)} of other tables, profiles or settings stay)" * bool(self.others)


def bring_up(addresses: Collection[str], store: Store, project: str, entity: str) -> Brought:
    """Send the offline runs of cells with `wandb sync`, each once, the parts of a resumed run in order."""
    folder = store.mirror
    found = sorted(folder.glob("wandb/offline-run-*"))
    runs = [run for run in found if _address(run) in addresses]
    before = [run for run in runs if _is_sent(run)]
    running = [run for run in runs if run not in before and is_held(store.lease_of("cell", _address(run)))]
    left = [run for run in runs if run not in before and run not in running]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each thread waits for its own process
        kinds = dict(zip(left, pool.map(_kind, left), strict=True))
    due = [run for run in left if kinds[run] == "whole"]
    if due:
        where = ["--project", project, *(["--entity", entity] if entity else [])]
        # Otherwise its logs create wandb/ in the working directory.
        places = {"WANDB_DATA_DIR": str((folder / "data").resolve()), "WANDB_DIR": str(folder.resolve())}
        subprocess.run(
            [*_WANDB, "sync", *where, *map(str, due)], env=places | os.environ, stdin=subprocess.DEVNULL, check=False
        )
    refused = [run for run in due if not _is_sent(run)]
    empty, unreadable = ([run for run in left if kinds[run] == kind] for kind in ("empty", "unreadable"))
    return Brought(
        sent=[run for run in due if run not in refused], before=before, running=running, empty=empty,
        unreadable=unreadable, refused=refused,
        others=[run for run in found if run not in runs and not _is_sent(run)],
    )  # fmt: skip


def publish(board: specs.Board, answer: str, memory: Path) -> dict[str, str]:
    """Save workspace and report; overwrite those listed in the file `memory` that still exist.

    Returns their URLs.

    Raises:
        ConfigError: if neither an option nor the key names the owner of the project.
    """
    import wandb

    api = wandb.Api()
    entity = board.entity or api.default_entity
    if not entity:
        raise ConfigError("--entity: the key belongs to no user or team by default; name the one that owns the project")
    board = dataclasses.replace(board, entity=entity)
    if board.project not in {project.name for project in api.projects(board.entity)}:
        api.create_project(board.project, board.entity)
    place = {"server": wandb.setup().settings.base_url, "entity": board.entity, "project": board.project}
    known = _remembered(memory, place)
    workspace, report = specs.workspace_of(board), specs.report_of(board, answer, project=True)
    if (there := _still_there(specs.ws.Workspace, known.get("workspace"))) is not None:
        workspace._internal_name, workspace._internal_id = there._internal_name, there._internal_id
    if (there := _still_there(specs.wr.Report, known.get("report"))) is not None:
        report.id = there.id
    saved = place | known
    for name, dashboard in (("workspace", workspace), ("report", report)):
        dashboard.save()
        saved[name] = dashboard.url
        write_json(memory, saved)  # at once, so that a call after an interruption makes no second one
    return {name: saved[name] for name in ("workspace", "report")}


def _remembered(memory: Path, place: dict[str, str]) -> dict[str, str]:
    """Return the URLs of what was published at the same place before."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(memory.read_text())
        if found.items() >= place.items():
            return found
    return {}


def _still_there(kind: Any, url: str | None) -> Any:
    """Return the dashboard at a URL, or None if it was deleted."""
    if url is None:
        return None
    try:
        return kind.from_url(url)
    except (ValueError, TypeError):  # ValueError for a missing workspace, TypeError for a report
        return None


def _address(run: Path) -> str:
    """Return the run id in offline-run-TIME-ID; W&B appends -1, -2, ... to parts that began in the same second."""
    return run.name.removeprefix("offline-run-").partition("-")[2].partition("-")[0]


def _is_sent(run: Path) -> bool:
    return any(run.glob("*.wandb.synced"))


def _kind(run: Path) -> Literal["whole", "empty", "unreadable"]:
    """Return the kind of a run; "empty" if not even its header was written."""
    files = list(run.glob("*.wandb"))
    if not any(path.stat().st_size for path in files):
        return "empty"
    inspect = [*_WANDB, "leet", "inspect", "--summary", "--json", str(run)]
    result = subprocess.run(inspect, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        return "unreadable"
    return "whole" if json.loads(result.stdout)["run_id"] else "empty"
