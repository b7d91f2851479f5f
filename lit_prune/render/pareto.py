"""Draw result against cost, with the Pareto front. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lit_prune.render import labels, metrics
from lit_prune.render.labels import WIDTH, Point
from lit_prune.render.numbers import amount, number
from lit_prune.render.svg import DIM, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_COSTS = ("parameters", "train_flops", "memory_share")
_COUNTS = ("parameters", "train_flops")
_TITLES = {"train_flops": "FLOPs of the retraining"}
# Costs that differ by less than this share count as equal.
_SAME = 0.02
# With more rows, only those of the front get labels.
_LABELLED = 10
_FRONT = "#d55e00"


def title(metric: str) -> str:
    """Return the name of a cost or a speed."""
    return _TITLES.get(metric, metrics.title(metric))


def fronts(report: Report) -> dict[str, pd.DataFrame]:
    """Return a frame by row for each cost or speed in which rows differ.

    Columns: cost, value (of the first metric), front (no row is as good in both and better in one). Empty if the
    first metric is itself a speed.
    """
    (value, *others), higher = report.table.metrics, report.table.higher_is_better
    rows = report.summary[~report.summary["reference"]]
    found: dict[str, pd.DataFrame] = {}
    for name in others if value not in higher else ():
        if name in _COSTS or name in higher:
            pairs = pd.DataFrame({"cost": rows[name], "value": rows["mean"]}).dropna()
            if len(pairs) > 1 and np.ptp(pairs["cost"]) >= _SAME * pairs["cost"].abs().max():
                found[name] = pairs.assign(front=_unbeaten(pairs, name in higher))
    return found


def _unbeaten(pairs: pd.DataFrame, gain: bool) -> np.ndarray:
    """Return a mask of the pairs of cost and value that no other pair dominates."""
    goods = pairs[["cost", "value"]].to_numpy() * [-1 if gain else 1, 1]
    as_good = (goods[:, None] <= goods).all(-1)
    better = (goods[:, None] < goods).any(-1)
    return ~(as_good & better).any(0)


def trade_offs(report: Report) -> Figure:
    """Draw the first metric over each cost or speed, with the front as a staircase and the references in range."""
    from matplotlib.figure import Figure

    found = fronts(report)
    named = {name: _named(pairs) for name, pairs in found.items()}
    heights = [max(2.3, labels.room_for([*rows, *report.table.reference_rows])) for rows in named.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.7 * len(heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, height, (name, pairs) in zip(panels, heights, found.items(), strict=True):
        _panel(axes, report, name, pairs, named[name], height)
    return figure


def _named(pairs: pd.DataFrame) -> list[str]:
    return list(pairs.index if len(pairs) <= _LABELLED else pairs.index[pairs["front"]])


def _panel(axes: Axes, report: Report, name: str, pairs: pd.DataFrame, named: list[str], height: float) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    near = pairs[labels.on_scale(pairs["value"])]
    front = near[near["front"]].sort_values("cost")
    spread = report.summary["interval"][near.index]
    axes.errorbar(near["cost"], near["value"], yerr=spread, fmt="none", ecolor=DIM, elinewidth=0.8, alpha=0.6)
    axes.plot(near["cost"], near["value"], "o", color=DIM, markersize=5, alpha=0.75, markeredgewidth=0)
    # A row of the front is available at its cost and above, or at its speed and below.
    stairs = "steps-pre" if name in report.table.higher_is_better else "steps-post"
    axes.plot(front["cost"], front["value"], color=_FRONT, drawstyle=stairs, linewidth=1.3)
    axes.plot(front["cost"], front["value"], "o", color=_FRONT, markersize=6)
    points = [
        Point(near["cost"][row], near["value"][row], row, ink=INK if near["front"][row] else DIM)
        for row in named
        if row in near.index
    ]
    beside, far = _references(report, name, near)
    for point in beside:
        axes.plot(point.x, point.y, "*", color=DIM, markersize=9, markeredgewidth=0)
    axes.margins(0.06)
    axes.set(xlabel=title(name), ylabel=metrics.title(report.table.metrics[0]))
    if name in _COUNTS:
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(labels.limits([*near["value"], *(point.y for point in beside)], axes.get_ylim()))
    labels.beside(axes, [*points, *beside], height)
    gone = pairs.drop(near.index).itertuples()
    outliers = [*(f"{row.Index} ({_pair(name, row.cost, row.value)})" for row in gone), *far]
    labels.note(axes, outliers, len(near) - len(points))


def _pair(name: str, cost: float, value: float) -> str:
    return f"{amount(cost) if name in _COUNTS else number(cost, 2)}, {number(value)}"


def _references(report: Report, name: str, near: pd.DataFrame) -> tuple[list[Point], list[str]]:
    """Return the references within range of the rows, and the others as text."""
    summary = report.summary[report.summary["reference"]]
    scale = pd.DataFrame({"cost": summary[name], "value": summary["mean"]}).dropna()
    scale = scale[scale["cost"] > 0]  # without training there is no cost of training
    low, high = near[["cost", "value"]].min(), near[["cost", "value"]].max()
    span = high - low
    close = ((scale > low - span) & (scale < high + span)).all(axis=1)
    points = [Point(row.cost, row.value, str(row.Index)) for row in scale[close].itertuples()]
    return points, [f"{row.Index} ({_pair(name, row.cost, row.value)})" for row in scale[~close].itertuples()]
