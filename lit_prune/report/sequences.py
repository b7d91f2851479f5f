"""Read losses by validation sequence of rows that seeds do not change; their only noise is the text. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lit_prune.config.table import Table
from lit_prune.report.verdicts import by_seed
from lit_prune.store import Node
from lit_prune.store.store import SEQUENCES

COLUMNS = ["row", "metric", "sequence", "loss", "tokens"]
_DIGITS = 6
"""Decimals of a sequence's nats, in records and in reports of a store, so that both test the same numbers."""


def read_sequences(table: Table, tidy: pd.DataFrame, done: Mapping[tuple[str, int], Node]) -> pd.DataFrame:
    """Return COLUMNS for each row and metric that is equal in all of at least two seeds, from the first seed's cell.

    Metrics are the table's first and those of its claims. `loss` is summed over the scored tokens of a sequence, in
    nats; `tokens` is their number. Older cells, which did not store sequences, have no lines.
    """
    metrics = dict.fromkeys([table.metrics[0], *(name for claim in table.claims for name in claim.named_metrics)])
    frames = []
    for metric in metrics:
        for row, values in by_seed(tidy, metric).items():
            known = values.dropna()
            path = done[row, known.index[0]].folder / SEQUENCES if _constant(known) else None
            if path is not None and path.exists():
                lines = pd.read_parquet(path)
                frames.append(lines[lines["metric"] == metric].assign(row=row))
    found = pd.concat(frames, ignore_index=True)[COLUMNS] if frames else pd.DataFrame(columns=COLUMNS)
    return found.astype({"loss": float}).round({"loss": _DIGITS})


def _constant(values: pd.Series) -> bool:
    """Return whether at least two seeds gave the same value, up to rounding."""
    return len(values) > 1 and bool(np.allclose(values, values.iloc[0], rtol=1e-9, atol=0))
