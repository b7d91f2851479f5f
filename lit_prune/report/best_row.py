"""Find the best row of a table and its distance to the next one. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from lit_prune.config.table import LEVEL, Table
from lit_prune.report.statistics import Paired, holm
from lit_prune.report.verdicts import Measured


@dataclass(frozen=True)
class BestRow:
    """The row with the best mean of the table's first metric, compared with the runner-up."""

    row: str
    value: float
    runner_up: str | None = None
    """The next best row; None if no other row is measured."""
    margin: Paired | None = None
    """Best minus runner-up over shared seeds; p is corrected for the number of rows by Holm's method."""
    rivals: tuple[str, ...] = ()
    """Rows whose difference to the best one is not significant or too small to matter, in order of their result."""
    over: str = "seeds"
    """Unit of the test of `margin`, as in `Compared`."""

    @property
    def decided(self) -> bool:
        """Whether the row is significantly better than every other one."""
        return self.runner_up is not None and not self.rivals


def best_row(table: Table, summary: pd.DataFrame, measured: Measured) -> BestRow | None:
    """Return the best of the compared rows; None if none is measured.

    Every other row is tested against the best one like a claim: paired test (`Measured.compare`), Holm's method over
    the rows, p < 0.05, and a difference of at least the smallest effect of interest.

    Args:
        summary: the frame of `summarise`.
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
