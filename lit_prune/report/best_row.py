"""The answer of a table in numbers: its best row, and how far the next one is. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lit_prune.config.table import Table
from lit_prune.report.statistics import Paired, compare, holm


@dataclass(frozen=True)
class BestRow:
    """The row with the best mean of the table's first metric, against the row next to it."""

    row: str
    value: float
    runner_up: str | None = None
    """The next best row; None if no other row is measured."""
    margin: Paired | None = None
    """Best minus runner-up over the seeds both have; p is corrected for the number of rows by Holm's method."""
    rivals: tuple[str, ...] = ()
    """Rows that the seeds do not tell apart from the best one, in order of their result."""

    @property
    def decided(self) -> bool:
        """Whether the row is better than every other one."""
        return self.runner_up is not None and not self.rivals


def best_row(table: Table, summary: pd.DataFrame, values: pd.DataFrame) -> BestRow | None:
    """Return the best of the compared rows; None if none is measured.

    Every other row is tested against the best one: paired t-test over the shared seeds, Holm's method over the rows,
    p < 0.05. A difference that is the same for every seed and not 0 is decided by its sign, as for a claim.

    Args:
        summary: as of `summarise`.
        values: the first metric, [seeds, rows].
    """
    higher = table.metrics[0] in table.higher_is_better
    means = summary.loc[summary["compared"], "mean"].dropna().sort_values(ascending=not higher, kind="stable")
    if means.empty:
        return None
    best, *others = map(str, means.index)
    if not others:
        return BestRow(best, float(means[best]))
    pairs = {row: compare(values, best, row) for row in others}
    p = holm(pd.Series({row: pair.p for row, pair in pairs.items()}, dtype=float))
    ahead = {row: pair.difference > 0 if higher else pair.difference < 0 for row, pair in pairs.items()}
    rivals = tuple(row for row in others if not (ahead[row] and (p[row] < 0.05 or pairs[row].constant)))
    first = pairs[others[0]]
    margin = Paired(first.difference, first.low, first.high, float(p[others[0]]), first.n)
    return BestRow(best, float(means[best]), others[0], margin, rivals)
