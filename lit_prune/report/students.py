"""List the students of a table with their folders and sizes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_prune.report.report import Report
from lit_prune.store import Node, Store


@dataclass(frozen=True)
class Student:
    """A student that a finished cell saved in Hugging Face layout."""

    row: str
    seed: int
    folder: Path
    parameters: float
    """NaN if the cell did not record it."""
    num_bytes: int


def students(report: Report, store: Store) -> Iterator[Student]:
    """Yield the students of the finished cells, the best row first; cells without retraining keep none."""
    done = report.tidy[(report.tidy["state"] == "done") & ~report.tidy["reference"]]
    place = {row: number for number, row in enumerate(report.ranked.index)}
    for cell in done.sort_values("row", key=lambda rows: rows.map(place), kind="stable").itertuples():
        node = store.root / "cell" / cell.key
        if (folder := node / "model").is_dir():
            result = Node(node).result or {}
            num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield Student(cell.row, cell.seed, folder, float(result.get("parameters", "nan")), num_bytes)
