"""Measure identical students once: calibration on other sequences often keeps the same units."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from lit_prune.config import Cell
from lit_prune.store import Locked, Node, Store
from lit_prune.store.address import identity
from lit_prune.store.integrity import sha256_of
from lit_prune.store.store import IDENTICAL, SEQUENCES, commits_of

_FILES = ("config.json", "*.safetensors")
"""Files of a student that its measurement reads: config, weights and masks."""
_CHOICE = ("importance", "student", "seed")
"""Sections of a cell that only choose the student, if it is not retrained."""


def measurement_of(cell: Cell, student: str | None) -> dict[str, Any] | None:
    """Return what the measurement of a cell depends on: its student's files and its text, references and tests.

    None if another cell's cannot stand for it: the student is retrained, or its speed is measured.
    """
    if student is None or cell.distill.max_steps or cell.evaluation.throughput is not None:
        return None
    files = sorted(path for pattern in _FILES for path in Path(student).glob(pattern))
    if len(files) < 2:  # in another format
        return None
    about = {name: value for name, value in identity(cell, "cell").items() if name not in _CHOICE}
    return {**about, "stage": IDENTICAL, "files": {path.name: sha256_of(path) for path in files}}


def find(store: Store, about: dict[str, Any] | None) -> Node | None:
    """Return a finished cell with this measurement; None if there is none."""
    if about is None:
        return None
    known = store.about(IDENTICAL, about).result
    node = None if known is None else store.at("cell", known["cell"])
    return node if node is not None and node.verified is not None else None


def take_over(node: Node, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copy the losses of a cell to the folder of another; return its result, and where that is from for env.json."""
    result = node.result
    assert result is not None
    shutil.copy(node.folder / SEQUENCES, folder)
    return result, {"cell": node.key, "commits": commits_of(node.env)}


def note(store: Store, about: dict[str, Any] | None, cell: str) -> None:
    """Note that the cell at an address has this measurement, unless another process notes one now."""
    if about is None:
        return
    with contextlib.suppress(Locked), store.hold(IDENTICAL, about) as node:
        if node.result is not None:
            node.reopen()  # the cell that it names is gone
        node.finish({"cell": cell})
