"""The figures of a report: final values of all rows, and every logged term over the steps. No torch."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.render import words

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
_NOT_TERMS = ("row", "seed", "step", "loss", "lr", "tokens_per_second")
# Colours matplotlib is given; in the page they become those of its light or dark theme.
_INK, _LINE, _DIM = "#010203", "#040506", "#070809"
_THEME = {_INK: "currentColor", _LINE: "var(--accent)", _DIM: "var(--dim)"}
_POINTS = 150


def inline(report: Report) -> dict[str, Any]:
    """Inline SVG: `final`, and `terms`, each with title, whether panels share a scale, row -> panel."""
    import matplotlib as mpl
    from markupsafe import Markup

    style = {
        "svg.fonttype": "none", "svg.hashsalt": report.table.name, "text.parse_math": False, "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _DIM, "axes.labelcolor": _INK,
        "xtick.color": _DIM, "ytick.color": _DIM, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
    }  # fmt: skip
    logged = [name for name in report.histories if name not in _NOT_TERMS]
    with mpl.rc_context(style):
        label = f"{words.title(report.table.metrics[0])} of each row"
        final = Markup(_svg(final_values(report), "final", label)) if report.summary["n"].any() else ""
        terms = [
            {"title": _TERMS.get(name, name), "shared": name == "clm", "panels": _panels(report, name)}
            for name in sorted(logged, key=[*_TERMS, *logged].index)
        ]
    return {"final": final, "terms": terms}


def _panels(report: Report, term: str) -> dict[str, str]:
    """Row -> SVG of one logged term over the steps, of the rows that have it."""
    from markupsafe import Markup

    logged = report.histories.dropna(subset=[term])
    curves = {str(row): curve_of(history, term) for row, history in logged.groupby("row", sort=False)}
    # Cross-entropy on the labels is one quantity in all rows; a logit loss is another in each.
    shared = (logged[term].min(), logged[term].max()) if term == "clm" else None
    return {
        row: Markup(_svg(panel(curve, shared), f"{term}-{place}", f"{term} of {row}"))
        for place, (row, curve) in enumerate(curves.items())
    }


def curve_of(history: pd.DataFrame, term: str) -> pd.DataFrame:
    """Columns step, mean, min and max over the seeds, in at most 150 lines."""
    import numpy as np

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
    axes.fill_between(curve["step"], curve["min"], curve["max"], color=_LINE, alpha=0.25, linewidth=0)
    axes.plot(curve["step"], curve["mean"], color=_LINE, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def final_values(report: Report) -> Figure:
    """The first metric of every row: seeds, mean, t interval; baseline and references as vertical lines."""
    from matplotlib.figure import Figure

    metric, summary = report.table.metrics[0], report.summary
    rows = summary[~summary["reference"] & (summary["n"] > 0)]
    lines = summary["mean"][[kind != "" for kind in words.kinds(report)]].dropna().sort_values(ascending=False)
    figure = Figure(figsize=(6.2, 0.8 + 0.34 * len(rows) + 0.17 * len(lines)), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{words.title(metric)} (lower is better)", ylim=(len(rows) - 0.4, -0.6))
    for place, (row, mean) in enumerate(rows["mean"].items()):
        seeds = report.tidy.loc[(report.tidy["row"] == row) & ~report.tidy["reference"], metric].dropna()
        axes.errorbar(mean, place, xerr=rows.loc[row, "interval"], color=_LINE, linewidth=1.5)
        axes.plot(mean, place, "|", color=_LINE, markersize=11, markeredgewidth=2)
        axes.scatter(seeds, [place + 0.25] * len(seeds), s=15, color=_LINE, alpha=0.6, linewidth=0)
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
            axes.axvline(x, color=_DIM, linewidth=1, linestyle="-" if name == "baseline" else ":", zorder=0)
        share = min(max((x - low) / (high - low), 0), 1)
        axes.annotate(
            text, (low + share * (high - low), 1), (0, 3 + 11 * place), axes.get_xaxis_transform(),
            "offset points", fontsize=8, color=_DIM,
            ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        )  # fmt: skip


def _svg(figure: Figure, name: str, label: str) -> str:
    """Inline SVG with the page's colours and font; its ids begin with `name`, which is unique in the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = stream.getvalue().partition("<svg")[2].partition(">")
    # HTML knows the namespaces, the page is as wide as its reader's, and nobody reads the metadata.
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for placeholder, colour in _THEME.items():
        body = body.replace(placeholder, colour)
    return f'<svg role="img" aria-label="{html.escape(label)}" {box}>{body}'
