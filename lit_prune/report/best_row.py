"""The answer of a table in numbers: its best row, and how far the next one is. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from lit_prune.config.table import LEVEL, Table
from lit_prune.report.statistics import Paired, holm
from lit_prune.report.verdicts import Measured


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
    """Rows that cannot be told apart from the best one, or by too little to matter, in order of their result."""
    over: str = "seeds"
    """What `margin` was tested over, as of `Compared`."""

    @property
    def decided(self) -> bool:
        """Whether the row is better than every other one."""
        return self.runner_up is not None and not self.rivals


def best_row(table: Table, summary: pd.DataFrame, measured: Measured) -> BestRow | None:
    """Return the best of the compared rows; None if none is measured.

    Every other row is tested against the best one as a claim is: paired test (`Measured.compare`), Holm's method over
    the rows, p < 0.05, and a difference of at least the smallest effect of interest.

    Args:
        summary: as of `summarise`.
        measured: the first metric.
    """
    higher = table.metrics[0] in table.higher_is_better
    means = summary.loc[summary["compared"], "mean"].dropna().sort_values(ascending=not higher, kind="stable")
    if means.empty:
        return None
    best, *others = map(str, means.index)
    if not others:
        return BestRow(best, float(means[best]))
    found = {row: measured.compare(best, row) for row in others}
    p = holm(pd.Series({row: one.pair.p for row, one in found.items()}, dtype=float))
    ahead = {row: one.pair.difference > 0 if higher else one.pair.difference < 0 for row, one in found.items()}
    rivals = tuple(row for row in others if not (ahead[row] and p[row] < LEVEL and found[row].matters))
    first = found[others[0]]
    margin = replace(first.pair, p=float(p[others[0]]))
    return BestRow(best, float(means[best]), others[0], margin, rivals, first.over)
