"""Draw final values of all rows, and training and validation losses over the steps. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_prune.render import labels, metrics, svg, wording
from lit_prune.render.numbers import number
from lit_prune.render.svg import DIM, LINE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_TERMS = {
    "ce_loss": "cross-entropy on the labels (ce_loss)",
    "kd_loss": "logit loss (kd_loss)",
    "hidden_loss": "intermediate loss (hidden_loss)",
    "grad_norm": "gradient norm before clipping (grad_norm)",
}
PANELS = "Line: mean over seeds. Band: minimum to maximum. Values are averaged over windows of steps."
"""Caption of the panels of training losses."""
_NOT_TERMS = ("row", "seed", "step", "loss", "lr", "tokens_per_second")
_POINTS = 150


def terms(report: Report) -> list[dict[str, Any]]:
    """Return each logged term of the loss: its title, whether the panels share a scale, and row -> inline SVG."""
    import matplotlib as mpl

    logged = [name for name in report.histories if name not in _NOT_TERMS]
    with mpl.rc_context(svg.style(report.table.name)):
        return [
            {"title": _TERMS.get(name, name), "shared": name == "ce_loss", "panels": panels(report, name)}
            for name in sorted(logged, key=[*_TERMS, *logged].index)
        ]


def panels(report: Report, term: str, page: str = "") -> dict[str, str]:
    """Return row -> SVG of one logged term over the steps; its ids begin with `page`."""
    logged = report.histories.dropna(subset=[term])
    curves = {str(row): curve_of(history, term) for row, history in logged.groupby("row", sort=False)}
    # Cross-entropy on the labels is comparable between rows, logit losses are not.
    shared = (logged[term].min(), logged[term].max()) if term == "ce_loss" else None
    return {
        row: svg.inline(panel(curve, shared), f"{page}{term}-{place}", f"{term} of {row}")
        for place, (row, curve) in enumerate(curves.items())
    }


def curve_of(history: pd.DataFrame, term: str) -> pd.DataFrame:
    """Return the columns step, and mean, min and max over the seeds, in at most 150 lines."""
    # Seeds can have different logging intervals, which are not part of the address.
    runs = history.pivot_table(index="step", columns="seed", values=term)
    curve = runs.interpolate("index", limit_area="inside").agg(["mean", "min", "max"], axis=1).reset_index()
    window = np.arange(len(curve)) // math.ceil(len(curve) / _POINTS)
    return curve.groupby(window).agg({"step": "mean", "mean": "mean", "min": "min", "max": "max"})


def panel(curve: pd.DataFrame, shared: tuple[float, float] | None) -> Figure:
    """Draw the mean over the seeds and a band from minimum to maximum; one seed has no band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.2, 1.9), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    if shared:
        # Extends the scale and draws nothing.
        axes.update_datalim([(curve["step"].iloc[0], value) for value in shared])
    axes.fill_between(curve["step"], curve["min"], curve["max"], color=LINE, alpha=0.25, linewidth=0)
    axes.plot(curve["step"], curve["mean"], color=LINE, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def validation_curves(report: Report) -> Figure:
    """Draw the validation LM loss of every row over the steps."""
    return curves(report, report.checks, "lm_loss", "validation LM loss (nats per token)")


def training_curves(report: Report) -> Figure:
    """Draw the logit loss of every row that has one over the steps."""
    return curves(report, report.histories.dropna(subset=["kd_loss"]), "kd_loss", "logit loss in training")


def curves(report: Report, courses: pd.DataFrame, term: str, label: str) -> Figure:
    """Draw one term of every row over the steps: mean over the seeds, and a band from minimum to maximum.

    The scale covers the values after the first step, where rows are close; a row that ends far above the others is
    named above the panel.
    """
    import pandas as pd
    from matplotlib.figure import Figure

    found = {str(row): curve_of(course, term) for row, course in courses.groupby("row", sort=False)}
    ends = pd.Series({row: curve["mean"].iloc[-1] for row, curve in found.items()}).sort_values(ascending=False)
    near = dict(zip(ends.index, labels.on_scale(list(ends)), strict=True))
    colour_of = labels.emphasised(report, ends)
    named = [row for row in labels.labelled(colour_of) if near[row]]
    height = max(2.4, labels.room_for(named))
    figure = Figure(figsize=(labels.WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=label)
    for row in ends.index:
        _curve(axes, row, found[row], colour_of[row])
    later = courses.loc[(courses["step"] > courses["step"].min()) & courses["row"].astype(str).map(near), term]
    if len(later) and np.ptp(later) > 0:
        axes.set_ylim(later.min() - 0.05 * np.ptp(later), later.max() + 0.25 * np.ptp(later))
    labels.step_ticks(axes, courses["step"])
    points = [_end(row, found[row], colour_of[row]) for row in named]
    labels.beside(axes, points, height)
    outliers = [f"{row} (ends at {ends[row]:.4f})" for row in ends.index if not near[row]]
    labels.note(axes, outliers, len(ends) - len(outliers) - len(named))
    return figure


def _curve(axes: Axes, row: str, curve: pd.DataFrame, colour: str) -> None:
    grey = colour == DIM
    if not grey:
        axes.fill_between(curve["step"], curve["min"], curve["max"], color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        curve["step"], curve["mean"], color=colour, linewidth=0.8 if grey else 1.6, alpha=0.6 if grey else 1.0,
        zorder=1.5 if grey else 2, label=row,
    )  # fmt: skip


def _end(row: str, curve: pd.DataFrame, colour: str) -> labels.Point:
    return labels.Point(curve["step"].iloc[-1], curve["mean"].iloc[-1], row, colour, labels.ink(colour))


def measured_rows(report: Report) -> pd.DataFrame:
    """Return the summary of the rows that have a result, without reference rows."""
    return report.ranked[~report.ranked["reference"] & (report.ranked["n"] > 0)]


def final_values(report: Report) -> Figure:
    """Draw the first metric of every row: seeds, mean and t interval; baseline and references as vertical lines.

    An outlier is written at the edge of the panel instead.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metric, summary, rows = report.table.metrics[0], report.summary, measured_rows(report)
    near = rows[labels.on_scale(rows["mean"])]
    marked = summary["reference"] | (summary.index == report.table.baseline)
    lines = summary.loc[marked, "mean"].dropna().sort_values(ascending=False)
    names = [labels.fold(str(row)) for row in rows.index]
    height = sum(max(0.3, 0.06 + labels.room_for([str(row)])) for row in rows.index)
    figure = Figure(figsize=(labels.WIDTH, 0.8 + height + 0.18 * len(lines)), layout="constrained")
    label = f"{metrics.title(metric)} ({wording.better(report, metric)})"
    axes = figure.add_subplot(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    for place, (row, mean) in enumerate(rows["mean"].items()):
        seeds = report.tidy.loc[(report.tidy["row"] == row) & ~report.tidy["reference"], metric].dropna()
        if row not in near.index:
            text = f"{number(mean)} →"
            axes.annotate(text, (1, place), xycoords=axes.get_yaxis_transform(), color=LINE, ha="right", va="center")
            continue
        axes.errorbar(mean, place, xerr=rows.loc[row, "interval"], color=LINE, linewidth=1.5)
        axes.plot(mean, place, "|", color=LINE, markersize=11, markeredgewidth=2)
        axes.scatter(seeds, [place + 0.25] * len(seeds), s=15, color=LINE, alpha=0.6, linewidth=0)
    axes.set_xlim(labels.limits(list(near["mean"]), axes.get_xlim()))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    _reference_lines(axes, lines.rename({report.table.baseline: "baseline"}).to_dict())
    return figure


def _reference_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    """Draw vertical lines with names above the axes; name a line far from the rows at the edge instead."""
    low, high = axes.get_xlim()
    near = [x for x in lines.values() if abs(x - (low + high) / 2) < high - low]
    low, high = min([low, *near]), max([high, *near])
    room = 0.03 * (high - low)
    axes.set_xlim(low - room, high + room)
    for place, (name, x) in enumerate(lines.items()):
        text = f"{name} {number(x)}"
        text = f"← {text}" if x < low else f"{text} →" if x > high else text
        if low <= x <= high:
            axes.axvline(x, color=DIM, linewidth=1, linestyle="-" if name == "baseline" else ":", zorder=0)
        share = min(max((x - low) / (high - low), 0), 1)
        axes.annotate(
            text, (low + share * (high - low), 1), (0, 3 + 12 * place), axes.get_xaxis_transform(),
            "offset points", color=DIM,
            ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        )  # fmt: skip
