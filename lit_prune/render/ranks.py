"""Draw the order of rows: ranks during retraining, and results against the paper's. No torch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pandas as pd

from lit_prune.render import labels, metrics
from lit_prune.render.labels import WIDTH, Point
from lit_prune.render.numbers import number
from lit_prune.render.svg import DIM, LINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_MARK = "#e8590c"


def ranks(checks: pd.DataFrame) -> pd.DataFrame:
    """Return the rank of each row by mean LM loss over seeds, [validations, rows]; 1 is the lowest, ties share a rank.

    Columns are in the order of the last validation. Skips rows without it, and validations that a remaining row lacks.
    Empty with fewer than two rows or two validations.
    """
    losses = checks.pivot_table(index="step", columns="row", values="lm_loss")
    if losses.empty:
        return losses
    found = losses.loc[:, losses.iloc[-1].notna()].dropna().rank(axis=1)
    if min(found.shape) < 2:
        return pd.DataFrame()
    return found[found.iloc[-1].sort_values(kind="stable").index]


def order_changes(found: pd.DataFrame) -> bool:
    """Return whether two rows swap their order between two validations; ties have no order."""
    pairs = itertools.combinations(found.columns, 2)
    differences = (found[one] - found[other] for one, other in pairs)
    return any((difference < 0).any() and (difference > 0).any() for difference in differences)


def crossings(report: Report, found: pd.DataFrame) -> list[tuple[float, float]]:
    """Return step and rank at which the lines of the two rows of a claim cross for the last time."""
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
    """Draw the rank of each row at each validation; a ring marks where the two rows of a claim cross."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = ranks(report.checks)
    colour_of = labels.emphasised(report, found.iloc[-1])
    named = labels.labelled(colour_of)
    height = max(1.6, 0.2 * len(found.columns), labels.room_for(named))
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="rank by validation LM loss\n(1 is the lowest)")
    axes.set_ylim(len(found.columns) + 0.5, 0.5)
    for row, line in found.items():
        colour = colour_of[str(row)]
        width, alpha = (0.8, 0.6) if colour == DIM else (1.8, 1.0)
        axes.plot(line.index, line, color=colour, alpha=alpha, linewidth=width, marker="o", markersize=2.5 * width)
    for step, rank in crossings(report, found):
        axes.plot(step, rank, "o", markersize=13, markerfacecolor="none", markeredgecolor=_MARK, markeredgewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    labels.step_ticks(axes, list(found.index))
    last = found.iloc[-1]
    labels.beside(
        axes,
        [Point(last.name, last[row], row, colour_of[row], labels.ink(colour_of[row])) for row in named],
        height,
    )
    labels.note(axes, [], len(found.columns) - len(named))
    return figure


def beside_paper(report: Report) -> pd.DataFrame:
    """Return the first metric of rows that the paper has too: columns paper, ours, interval (half the 95 % t interval).

    Empty with fewer than three such rows, or if the paper has the same value for all.
    """
    summary = report.summary[~report.summary["reference"]]
    names = {f"paper {report.table.metrics[0]}": "paper", "mean": "ours", "interval": "interval"}
    both = summary[list(names)].rename(columns=names).dropna(subset=["paper", "ours"])
    return both if len(both) >= 3 and both["paper"].nunique() > 1 else both.iloc[:0]


def paper_and_ours(report: Report) -> Figure:
    """Draw our means with their t intervals over the values of the paper, a labelled dot for each row."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    both, metric = beside_paper(report), metrics.title(report.table.metrics[0])
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
    axes.set_ylim(labels.limits(list(shown["ours"]), axes.get_ylim()))
    labels.beside(axes, [Point(row.paper, row.ours, str(row.Index)) for row in shown.itertuples()], height)
    far = both[~near].itertuples()
    labels.note(axes, [f"{row.Index} (paper {number(row.paper, 3)}, here {number(row.ours)})" for row in far])
    return figure
