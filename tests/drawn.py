"""Reports of small tables whose cells have given results, to draw; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lit_prune.config import Cell, Corpus, Distill, Profile, Teacher
from lit_prune.config.table import Grid, Table
from lit_prune.pipeline.expand import entries
from lit_prune.report import Report, assemble
from lit_prune.store import Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64), distill=Distill(steps=40))


def toy(points: Mapping[str, dict[str, Any]], **changes: Any) -> Table:
    """A table of these rows; the first is the baseline."""
    names = {repr(sorted(point.items())): row for row, point in points.items()}
    seeded = ("seed",)
    return Table(
        **{
            "name": "toy", "question": "Which?", "source": "nowhere", "grid": Grid(tuple(points.values())),
            "label": lambda point: names[repr(sorted((k, v) for k, v in point.items() if k not in seeded))],
            "baseline": next(iter(points)), "paper": {}, "claims": (), "metrics": ("lm_loss",), "seeded": seeded,
            "references": {"teacher": {"distill.steps": 0, "evaluation.blocks": 1}},
        } | changes
    )  # fmt: skip


def answered(
    folder: Path, table: Table, found: Mapping[str, Sequence[Mapping[str, float]]],
    courses: Mapping[str, Mapping[int, float]] | None = None, logits: Mapping[str, Mapping[int, float]] | None = None,
) -> Report:  # fmt: skip
    """The report of a table: row -> result of each seed, LM loss by check, logit loss by step; what is not given is
    missing."""
    seeds = max(1, *map(len, found.values()))
    asked, store = entries(table, Profile(CELL, seeds)), Store(folder)
    for entry in asked:
        if entry.seed >= len(found.get(entry.row, ())):
            continue
        with store.claim(entry.cell, "cell") as node:
            for name, term, given in (("checks", "lm_loss", courses), ("metrics", "logits", logits)):
                course = (given or {}).get(entry.row)
                if course and not entry.reference:
                    lines = pd.DataFrame({"step": list(course), term: list(course.values())})
                    lines.assign(**({"kd_loss": 1.0} if name == "checks" else {"loss": 1.0})).to_csv(
                        node.folder / f"{name}.csv", index=False
                    )
            node.finish(dict(found[entry.row][entry.seed]), seconds=1.0, commit="abc")
    return assemble(table, "tiny", {}, asked, store)
