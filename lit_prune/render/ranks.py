"""Figures of the order of the rows: how it moves during the retraining, and how far it is the paper's. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lit_prune.render import labels, wording
from lit_prune.render.labels import WIDTH, Point
from lit_prune.render.numbers import number
from lit_prune.render.svg import DIM, INK, LINE, stroke

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_MARK = "#e8590c"
# Rows up to which every line has a colour of its own, where claims say which matter.
_COLOURED = 8


def ranks(checks: pd.DataFrame) -> pd.DataFrame:
    """Rank of each row by its mean LM loss over seeds at each check, [steps, rows], 1 the lowest, ties sharing theirs.

    Rows that do not reach the last check and checks that not all of the others have are left out, and columns are in
    the order of the end; empty with fewer than two rows or two checks.
    """
    losses = checks.pivot_table(index="step", columns="row", values="lm_loss")
    if losses.empty:
        return losses
    found = losses.loc[:, losses.iloc[-1].notna()].dropna().rank(axis=1)
    if min(found.shape) < 2:
        return pd.DataFrame()
    return found[found.iloc[-1].sort_values(kind="stable").index]


def crossings(report: Report, found: pd.DataFrame) -> list[tuple[float, float]]:
    """Step and rank at which the lines of the two rows of a claim cross for good."""
    places = []
    for flip in report.flips.to_dict("records"):
        claim = report.table.claims[flip["claim"]]
        pair, steps = [claim.better, claim.worse], [flip["before"], flip["step"]]
        if not set(pair) <= set(found) or not set(steps) <= set(found.index):
            continue
        (a0, b0), (a1, b1) = found.loc[steps, pair].to_numpy()
        turn = (a0 - b0) - (a1 - b1)
        share = min(max((a0 - b0) / turn, 0.0), 1.0) if turn else 1.0
        places.append((steps[0] + share * (steps[1] - steps[0]), a0 + share * (a1 - a0)))
    return places


def rank_lines(report: Report) -> Figure:
    """Rank of each row at each check, named at the end; a ring where the two rows of a claim change places."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = ranks(report.checks)
    claimed = {row for claim in report.table.claims for row in (claim.better, claim.worse)}
    vivid = [row for row in found if len(found.columns) <= _COLOURED or not claimed or row in claimed]
    height = max(1.6, 0.3 * len(found.columns), labels.room_for(list(found)))
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="rank by validation LM loss\n(1 is the lowest)")
    axes.set_ylim(len(found.columns) + 0.5, 0.5)
    points = []
    for row, line in found.items():
        colour, dash = stroke(vivid.index(row)) if row in vivid else (DIM, "-")
        width, alpha = (1.8, 1.0) if row in vivid else (0.8, 0.6)
        axes.plot(
            line.index, line, dash, color=colour, alpha=alpha, linewidth=width, marker="o", markersize=2.5 * width
        )
        points.append(Point(line.index[-1], line.iloc[-1], str(row), colour, INK if row in vivid else DIM))
    for step, rank in crossings(report, found):
        axes.plot(step, rank, "o", markersize=13, markerfacecolor="none", markeredgecolor=_MARK, markeredgewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xticks(found.index) if len(found) <= 8 else axes.xaxis.set_major_locator(
        MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])
    )
    labels.beside(axes, points, height)
    return figure


def beside_paper(report: Report) -> pd.DataFrame:
    """The first metric of the rows both have, columns paper, ours and interval (half width of the 95 % t interval).

    Empty where these are fewer than three, or the paper has one value for all.
    """
    summary = report.summary[~report.summary["reference"]]
    names = {f"paper {report.table.metrics[0]}": "paper", "mean": "ours", "interval": "interval"}
    both = summary[list(names)].rename(columns=names).dropna(subset=["paper", "ours"])
    return both if len(both) >= 3 and both["paper"].nunique() > 1 else both.iloc[:0]


def paper_and_ours(report: Report) -> Figure:
    """The paper's values across, ours with their t interval up, each row a named dot."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    both, metric = beside_paper(report), wording.title(report.table.metrics[0])
    near = labels.on_scale(both["paper"]) & labels.on_scale(both["ours"])
    shown = both[near]
    height = max(2.6, labels.room_for(list(shown.index)))
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{metric} in the paper", ylabel=f"{metric} here")
    axes.errorbar(shown["paper"], shown["ours"], yerr=shown["interval"], fmt="none", ecolor=LINE, elinewidth=1.2)
    axes.plot(shown["paper"], shown["ours"], "o", color=LINE, markersize=5)
    axes.margins(0.06)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(axes.get_ylim())
    labels.beside(axes, [Point(row.paper, row.ours, str(row.Index)) for row in shown.itertuples()], height)
    far = both[~near].itertuples()
    labels.beyond(axes, [f"{row.Index} (paper {number(row.paper, 3)}, here {number(row.ours)})" for row in far])
    return figure
