"""Write a report as a folder and read it back without its store. No torch.

results.csv has the cells, curves.csv their training losses, checks.csv the validation losses during retraining,
sequences.csv the losses by validation sequence of rows without variance over seeds, and record.json the request and
the rest.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lit_prune.config import Cell, ConfigError, renames
from lit_prune.config.overrides import build, plain_of
from lit_prune.config.table import Table
from lit_prune.report import Report, ReportRequest, with_statistics
from lit_prune.report.layer_scores import LayerScores
from lit_prune.report.recorded_runs import RECORD, RESULTS
from lit_prune.report.results_frame import typed
from lit_prune.report.sequences import COLUMNS

SEQUENCES = "sequences.csv"
_POINTS = 50
"""Maximum lines of curves.csv per cell; a longer history is averaged over windows."""
_NOT_CURVES = ("row", "seed", "step", "lr", "tokens_per_second")
_NOW = ("row", "key", "error", "corpus", "second_corpus", "parent_corpus", "teacher", "commit")
_KINDS: dict[Any, type] = dict.fromkeys(
    [*_NOW, *(former for former, now in renames.COLUMNS.items() if now in _NOW)], str
)
"""Columns read as text even if all values look like numbers."""


def texts(report: Report) -> dict[str, str]:
    """Return name -> content of the files of a record."""
    return {
        RESULTS: report.tidy.to_csv(index=False),
        "curves.csv": _csv(_thinned(report.histories)),
        "checks.csv": _csv(report.checks),
        **({} if report.sequences.empty else {SEQUENCES: report.sequences.to_csv(index=False)}),
        RECORD: json.dumps(_plain(report), indent=1) + "\n",
    }


def read(folder: Path, table: Table) -> Report:
    """Return the report in a record, of the table that it names.

    Raises:
        ConfigError: if the record is incomplete or has fields that no longer exist.
    """
    try:
        return _read(folder, table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder} is no whole record ({' '.join(str(error).split())})") from None


def _read(folder: Path, table: Table) -> Report:
    plain = json.loads((folder / RECORD).read_text())
    tables = {name: pd.read_csv(folder / f"{name}.csv", dtype=_KINDS) for name in ("results", "curves", "checks")}
    frames = {name: renames.current_frame(frame) for name, frame in tables.items()}
    request = _request(plain, table)
    if without := {"row", "seed", "step"} - set(frames["curves"]):
        raise ValueError(f"curves.csv has no column {', '.join(sorted(without))}")
    cells = frames["results"].astype(object)
    cells = cells.where(cells.notna(), None)
    return with_statistics(
        request, typed(request.table, cells), checks=frames["checks"], histories=frames["curves"],
        sequences=_sequences(folder),
        layer_scores=_scores(plain["blocks" if "blocks" in plain else "layer_scores"]),  # a former name
        commits=frozenset(plain["commits"]), versions=plain["versions"],
        hardware=tuple(plain["hardware"]),
    )  # fmt: skip


def _sequences(folder: Path) -> pd.DataFrame:
    """Return the losses by sequence; none if seeds change every row, or in records older than this file."""
    path = folder / SEQUENCES
    return pd.read_csv(path, dtype={"row": str}) if path.exists() else pd.DataFrame(columns=COLUMNS)


def _request(plain: dict[str, Any], table: Table) -> ReportRequest:
    if table.build_for_profile is not None:
        own = {"baseline": plain["baseline"], "caveats": tuple(plain["caveats"]), "sections": plain.get("sections", {})}
        table = dataclasses.replace(table, **own)
    cell = build(Cell, renames.current(plain["cell"], Cell))
    settings, flags = renames.current(plain["settings"], Cell), renames.current_words(plain["flags"])
    return ReportRequest(table.measuring(cell), plain["profile"], settings, flags, cell)


def _plain(report: Report) -> dict[str, Any]:
    scores = report.layer_scores
    return {
        "profile": report.profile, "settings": dict(report.settings), "flags": report.flags,
        "baseline": report.table.baseline, "caveats": report.table.caveats,
        **({"sections": dict(report.table.sections)} if report.table.sections else {}),
        "commits": sorted(report.commits), "versions": dict(report.versions), "hardware": report.hardware,
        "cell": plain_of(report.cell),
        "layer_scores": None if scores is None else {name: _listed(array) for name, array in vars(scores).items()},
    }  # fmt: skip


def _listed(scores: Any) -> Any:
    """Return an array as lists for JSON, with null for NaN."""
    return None if scores is None else [[None if math.isnan(x) else round(x, 6) for x in line] for line in scores]


def _scores(plain: dict[str, Any] | None) -> LayerScores | None:
    if plain is None:
        return None
    return LayerScores(**{name: None if lines is None else np.array(lines, float) for name, lines in plain.items()})


def _thinned(histories: pd.DataFrame) -> pd.DataFrame:
    """Return the losses of each cell, averaged to a bounded number of lines."""
    kept = histories[["row", "seed", "step", *histories.columns.drop(list(_NOT_CURVES), errors="ignore")]]
    if kept.empty:
        return kept
    runs = kept.groupby(["row", "seed"], sort=False)
    windows = runs.cumcount() // np.ceil(runs["step"].transform("size") / _POINTS)
    return kept.groupby(["row", "seed", windows], sort=False).mean().droplevel(2).reset_index()


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g")
