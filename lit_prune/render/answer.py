"""Summarise the result of a table in one line. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_prune.config.table import LEVEL
from lit_prune.render import metrics
from lit_prune.render.numbers import number, p_value

if TYPE_CHECKING:
    from lit_prune.report import Report
    from lit_prune.report.best_row import BestRow


def answer_line(report: Report) -> str:
    """Return the result of the table in one line: best row, value, and distance to the next row."""
    best, metric = report.best, report.table.metrics[0]
    if best is None:
        return "No row has a result yet."
    shown, name = metrics.SHOWN.get(metric, number), metrics.title(metric)
    value = f"{shown(best.value)} {metrics.UNITS.get(metric, '')}".strip()
    if best.margin is None:
        return f"Only {best.row} has a result: {name} {value}."
    side, most = ("above", "highest") if metric in report.table.higher_is_better else ("below", "lowest")
    distance = abs(best.margin.difference)
    gap = f", {shown(distance)} {side} {best.runner_up}" if distance > 0 else ""
    if best.decided:
        return f"{best.row} is best: {name} {value}{gap} ({_test(best)})."
    return f"Undecided: {best.row} has the {most} {name}, {value}{gap}; {_doubt(report)}."


def _test(best: BestRow) -> str:
    assert best.margin is not None
    unit = " sequences" if best.over == "sequences" else ""
    return f"p {p_value(best.margin.p)}, n = {best.margin.n}{unit}"


def _doubt(report: Report) -> str:
    """Return the reason why the best row is not significantly better than every other one."""
    best = report.best
    assert best is not None
    assert best.margin is not None
    if best.margin.identical:
        return f"{best.runner_up} has the same in every seed"
    if best.margin.n < 2:
        return "one seed cannot tell rows apart"
    if list(best.rivals) == [best.runner_up]:
        if best.margin.p < LEVEL:
            return f"a smaller difference than one of interest ({_test(best)})"
        return f"the two cannot be told apart ({_test(best)})"
    others = report.summary["compared"].sum() - 1
    return f"{len(best.rivals)} of {others} other rows cannot be told apart from it, or differ by too little to matter"
