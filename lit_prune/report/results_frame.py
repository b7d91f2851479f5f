"""Tabulate the cells of a table: requested fields and the results in the store. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lit_prune.config import Cell, ConfigError, Teacher
from lit_prune.config.overrides import parent_of
from lit_prune.config.renames import current_frame
from lit_prune.config.table import Table
from lit_prune.distill.budget import tokens_of_step
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Node, Store
from lit_prune.store.store import IDENTICAL, PRUNING, commits_of

COSTS = ("tokens", "train_flops", "wall_seconds", "peak_memory")
"""Columns of the costs of a cell."""


COSTS_OF_PRUNING = {
    "prune_tokens": "tokens", "prune_forward_flops": "forward_flops", "prune_backward_flops": "backward_flops",
    "prune_seconds": "seconds", "prune_memory": "peak_memory",
}  # fmt: skip
"""Metrics that a table may have about the pruning of its students -> name in env.json."""


def tidy(table: Table, entries: list[Entry], store: Store) -> pd.DataFrame:
    """Return a line per cell, in the order of the entries.

    Columns: row, seed, reference, key, state (done, damaged, failed, unfinished or missing), error, the swept fields,
    the metrics (NaN unless done), corpus, second_corpus and the parent's corpus if it differs, and teacher
    (fingerprints; of a teacher trained here, its text's), tokens of the retraining, train_flops, wall_seconds,
    peak_memory (bytes, of the process during the cell) and commit. A cell that took the results of an identical student
    over has no wall_seconds and no peak_memory.

    Raises:
        ConfigError: if two cells share a row and a seed.
    """
    swept = dict.fromkeys(
        path for e in entries if not e.reference for path in e.changes if path not in table.seed_fields
    )
    swept.pop("parent", None)  # its changes are columns of their own
    # dtype object keeps an absent error, commit or size None instead of NaN.
    frame = pd.DataFrame([_line(table, entry, swept, store) for entry in entries], dtype=object)
    first = ["row", "seed", "reference", "key", "state", "error", *swept, *table.metrics]
    last = [name for name in COSTS if name not in first]
    frame = frame[[*first, *frame.columns.drop([*first, *last]), *last]]
    for twin in frame[frame.duplicated(["row", "seed"])].itertuples():
        raise ConfigError(f"{table.name}: its label gives two cells the row {twin.row!r}, seed {twin.seed}")
    return typed(table, frame)


def typed(table: Table, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with numeric columns as numbers."""
    numbers = cells.columns.intersection([*table.metrics, *COSTS])
    return cells.astype({"seed": int, "reference": bool} | dict.fromkeys(numbers, float))


def read_csv(path: Path) -> pd.DataFrame:
    """Return the metrics that a cell logged.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        return current_frame(pd.read_csv(path))
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); without the folder {path.parent} it is computed again"
        ) from None


def read_all(done: Mapping[tuple[str, int], Node], name: str) -> pd.DataFrame | None:
    """Return a CSV file of all cells that have it, with the columns row and seed first; None if no cell has it.

    Raises:
        ConfigError: if a file cannot be read.
    """
    paths = {row_and_seed: node.folder / name for row_and_seed, node in done.items()}
    frames = {row_and_seed: read_csv(path) for row_and_seed, path in paths.items() if path.exists()}
    if not frames:
        return None
    return pd.concat(frames, names=["row", "seed"]).reset_index(["row", "seed"]).reset_index(drop=True)


def _line(table: Table, entry: Entry, swept: Iterable[str], store: Store) -> dict[str, Any]:
    node, second = entry.node(store), entry.cell.evaluation.second_corpus
    parent = parent_of(entry.cell)
    return {
        "row": entry.row, "seed": entry.seed, "reference": entry.reference, "key": node.key,
        **{path: _value(entry, path) for path in swept},
        "corpus": entry.cell.corpus.fingerprint, **({"second_corpus": second.fingerprint} if second else {}),
        **({"parent_corpus": parent.corpus.fingerprint} if parent and parent.corpus != entry.cell.corpus else {}),
        "teacher": _origin(entry.cell.teacher),
        "tokens": entry.cell.distill.max_steps * tokens_of_step(entry.cell.distill),
        **found_of(table.metrics, node),
    }  # fmt: skip


def found_of(metrics: Iterable[str], node: Node) -> dict[str, Any]:
    """Return the results of a cell in the store."""
    (result, damage), env = node.read(), node.env
    error = None if result is not None else node.error
    pruning = env.get(PRUNING) or {}
    other = {metric: pruning.get(name) for metric, name in COSTS_OF_PRUNING.items()}
    other["nonzero_parameters"] = (result or {}).get("parameters")  # of a model without masks
    unfinished = "unfinished" if (node.folder / "last.ckpt").exists() else "missing"
    return {
        "state": "done" if result is not None else "damaged" if damage else "failed" if error else unfinished,
        "error": damage or (None if error is None else " ".join(error.split())),
        **{metric: (result or {}).get(metric, other.get(metric)) for metric in metrics},
        "train_flops": (result or {}).get("train_flops"),
        "wall_seconds": None if IDENTICAL in env else env.get("seconds"),
        "peak_memory": env.get("peak_memory"), "commit": ", ".join(filter(None, commits_of(env))) or None,
    }  # fmt: skip


def _origin(teacher: Teacher) -> str | None:
    return teacher.pretraining.corpus.fingerprint if teacher.pretraining else teacher.fingerprint


def _value(entry: Entry, path: str) -> Any:
    """Return a field of the cell, or its requested value if another field replaced it, as steps replace a budget."""
    node: Any = entry.cell
    inside = path
    while inside.startswith("parent.") and isinstance(node, Cell):
        node, inside = parent_of(node), inside.removeprefix("parent.")
    for name in inside.split("."):
        node = getattr(node, name, None)
    return entry.changes.get(path) if node is None else node
