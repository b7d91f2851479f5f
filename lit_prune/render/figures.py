"""The figures of a report: final values of all rows, and what was logged and checked over the steps. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_prune.render import depth, labels, svg, wording
from lit_prune.render.svg import DIM, LINE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_TERMS = {
    "clm": "cross-entropy on the labels (clm)",
    "logits": "logit loss (logits)",
    "hidden": "intermediate loss (hidden)",
    "grad_norm": "gradient norm before clipping (grad_norm)",
}
PANELS = "Line: mean over seeds. Band: from the least to the greatest. Values are means over windows of steps."
"""What is to be known of the panels of training losses to read them."""
_NOT_TERMS = ("row", "seed", "step", "loss", "lr", "tokens_per_second")
_POINTS = 150


def inline(report: Report) -> dict[str, Any]:
    """Inline SVG: `final`, `checks`, `blocks` (title -> name, figure), and `terms`, each with title, whether
    panels share a scale, row -> panel. What there is nothing to draw of is empty."""
    import matplotlib as mpl

    logged = [name for name in report.histories if name not in _NOT_TERMS]
    with mpl.rc_context(svg.style(report.table.name)):
        return {
            "final": _final(report) if report.summary["n"].any() else "",
            "checks": "" if report.checks.empty else _checks(report),
            "blocks": _blocks(report),
            "terms": [
                {"title": _TERMS.get(name, name), "shared": name == "clm", "panels": panels(report, name)}
                for name in sorted(logged, key=[*_TERMS, *logged].index)
            ],
        }


def _final(report: Report) -> str:
    return svg.inline(final_values(report), "final", f"{wording.title(report.table.metrics[0])} of each row")


def _checks(report: Report) -> str:
    return svg.inline(check_curves(report.checks), "checks", "validation LM loss of each row during the retraining")


def _blocks(report: Report) -> dict[str, tuple[str, str]]:
    """Title -> name and SVG of what is known of the teacher's blocks."""
    if report.blocks is None:
        return {}
    found = {"What each block is worth": ("blocks", depth.block_scores(report.blocks))}
    if report.blocks.spans is not None:
        found["How little a span of blocks changes"] = ("spans", depth.span_distances(report.blocks.spans))
    return {title: (name, svg.inline(figure, name, title)) for title, (name, figure) in found.items()}


def panels(report: Report, term: str, page: str = "") -> dict[str, str]:
    """Row -> SVG of one logged term over the steps, of the rows that have it; `page` begins the ids in them."""
    logged = report.histories.dropna(subset=[term])
    curves = {str(row): curve_of(history, term) for row, history in logged.groupby("row", sort=False)}
    # Cross-entropy on the labels is one quantity in all rows; a logit loss is another in each.
    shared = (logged[term].min(), logged[term].max()) if term == "clm" else None
    return {
        row: svg.inline(panel(curve, shared), f"{page}{term}-{place}", f"{term} of {row}")
        for place, (row, curve) in enumerate(curves.items())
    }


def curve_of(history: pd.DataFrame, term: str) -> pd.DataFrame:
    """Columns step, mean, min and max over the seeds, in at most 150 lines."""
    # Seeds may have been logged at different steps: the interval of the log is no part of their address.
    runs = history.pivot_table(index="step", columns="seed", values=term)
    curve = runs.interpolate("index", limit_area="inside").agg(["mean", "min", "max"], axis=1).reset_index()
    window = np.arange(len(curve)) // math.ceil(len(curve) / _POINTS)
    return curve.groupby(window).agg({"step": "mean", "mean": "mean", "min": "min", "max": "max"})


def panel(curve: pd.DataFrame, shared: tuple[float, float] | None) -> Figure:
    """Mean over the seeds and a band from least to greatest, which has no width where there is one seed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.2, 1.9), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    if shared:
        # Stretches the scale and draws nothing.
        axes.update_datalim([(curve["step"].iloc[0], value) for value in shared])
    axes.fill_between(curve["step"], curve["min"], curve["max"], color=LINE, alpha=0.25, linewidth=0)
    axes.plot(curve["step"], curve["mean"], color=LINE, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def check_curves(
    checks: pd.DataFrame, term: str = "lm_loss", label: str = "validation LM loss (nats per token)"
) -> Figure:
    """One term of every row over the steps: mean over the seeds and a band from least to greatest.

    Named at the end. The scale is that of the checks after the first, where the rows come near each other; a row that
    ends far above the others is told above it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = {str(row): curve_of(found, term) for row, found in checks.groupby("row", sort=False)}
    curves = dict(sorted(curves.items(), key=lambda curve: -curve[1]["mean"].iloc[-1]))
    ends = {row: labels.Point(curve["step"].iloc[-1], curve["mean"].iloc[-1], row) for row, curve in curves.items()}
    near = dict(zip(ends, labels.on_scale([end.y for end in ends.values()]), strict=True))
    height = max(2.4, labels.room_for(list(curves)))
    figure = Figure(figsize=(labels.WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=label)
    points = []
    for place, (row, curve) in enumerate(curves.items()):
        colour, dash = svg.stroke(place)
        axes.fill_between(curve["step"], curve["min"], curve["max"], color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve["step"], curve["mean"], dash, color=colour, linewidth=1.4, label=row)
        points.append(replace(ends[row], colour=colour))
    later = checks.loc[(checks["step"] > checks["step"].min()) & checks["row"].astype(str).map(near), term]
    if len(later) and np.ptp(later) > 0:
        axes.set_ylim(later.min() - 0.05 * np.ptp(later), later.max() + 0.25 * np.ptp(later))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    labels.beside(axes, [point for point in points if near[point.name]], height)
    labels.beyond(axes, [f"{row} (ends at {ends[row].y:.4f})" for row in ends if not near[row]])
    return figure


def final_values(report: Report) -> Figure:
    """The first metric of every row: seeds, mean, t interval; baseline and references as vertical lines."""
    from matplotlib.figure import Figure

    metric, summary = report.table.metrics[0], report.summary
    rows = summary[~summary["reference"] & (summary["n"] > 0)]
    lines = summary["mean"][[kind != "" for kind in wording.kinds(report)]].dropna().sort_values(ascending=False)
    figure = Figure(figsize=(6.2, 0.8 + 0.34 * len(rows) + 0.17 * len(lines)), layout="constrained")
    label = f"{wording.title(metric)} ({wording.better(report, metric)})"
    axes = figure.add_subplot(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    for place, (row, mean) in enumerate(rows["mean"].items()):
        seeds = report.tidy.loc[(report.tidy["row"] == row) & ~report.tidy["reference"], metric].dropna()
        axes.errorbar(mean, place, xerr=rows.loc[row, "interval"], color=LINE, linewidth=1.5)
        axes.plot(mean, place, "|", color=LINE, markersize=11, markeredgewidth=2)
        axes.scatter(seeds, [place + 0.25] * len(seeds), s=15, color=LINE, alpha=0.6, linewidth=0)
    axes.set_yticks(range(len(rows)), list(rows.index))
    axes.tick_params(axis="y", length=0)
    _lines_for_scale(axes, lines.rename({report.table.baseline: "baseline"}).to_dict())
    return figure


def _lines_for_scale(axes: Axes, lines: Mapping[str, float]) -> None:
    """Vertical lines, named above the axes; one that would squeeze the rows is only named, at the edge."""
    low, high = axes.get_xlim()
    near = [x for x in lines.values() if abs(x - (low + high) / 2) < 2 * (high - low)]
    low, high = min([low, *near]), max([high, *near])
    room = 0.03 * (high - low)
    axes.set_xlim(low - room, high + room)
    for place, (name, x) in enumerate(lines.items()):
        text = f"← {name} {x:.4f}" if x < low else f"{name} {x:.4f} →" if x > high else f"{name} {x:.4f}"
        if low <= x <= high:
            axes.axvline(x, color=DIM, linewidth=1, linestyle="-" if name == "baseline" else ":", zorder=0)
        share = min(max((x - low) / (high - low), 0), 1)
        axes.annotate(
            text, (low + share * (high - low), 1), (0, 3 + 11 * place), axes.get_xaxis_transform(),
            "offset points", fontsize=8, color=DIM,
            ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        )  # fmt: skip
