"""Draw the layers of the teacher: importance of each, and angular distance of each span. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lit_prune.render.labels import WIDTH, Point, beside
from lit_prune.render.svg import COLOURS as LINE_COLOURS
from lit_prune.render.svg import DIM, LINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report.layer_scores import Array, LayerScores

_MARK = "#e8590c"
# Most layers whose squares have room for a number; colours of the scale (a finer one becomes a bitmap).
_NUMBERED, _COLOURS = 12, 32
_TICKS = 16


def layer_scores(measured: LayerScores) -> Figure:
    """Draw bars of the Block Influence of each layer and of the loss without it: mean, and a dot a calibration draw."""
    from matplotlib.figure import Figure

    shown = [
        (label, scores)
        for label, scores in (
            ("Block Influence\n(1 − cosine)", measured.influence),
            ("LM loss increase\nwithout the layer\n(nats per token)", measured.damage),
        )
        if scores is not None
    ]
    width = max(WIDTH, 1.6 + 0.25 * max(scores.shape[1] for _, scores in shown))
    figure = Figure(figsize=(width, 0.6 + 1.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
    for axes, (label, scores) in zip(panels, shown, strict=True):
        _bars(axes, scores)
        axes.set_ylabel(label)
    panels[-1].set_xlabel("layer (0 is the first)")
    return figure


def _bars(axes: Axes, scores: Array) -> None:
    from matplotlib.ticker import MaxNLocator

    places = np.arange(scores.shape[1])
    axes.bar(places, scores.mean(0), color=LINE, alpha=0.55, width=0.7)
    axes.axhline(0, color=DIM, linewidth=0.8)
    if len(scores) > 1:
        draws = np.broadcast_to(places, scores.shape)
        axes.scatter(draws, scores, s=9, color=LINE, linewidth=0, zorder=3)
    axes.set_xticks(_ticks(len(places)))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def span_distances(spans: Array) -> Figure:
    """Draw a heat map of d(l, n), [layers, layers], over the first layer l and the number n; frame the minimum of n."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count, shown = len(spans), np.ma.masked_invalid(spans.T)
    side = min(max(3.4, 0.34 * count), 9.0)
    figure = Figure(figsize=(side + 1.2, 0.8 * side + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel="first layer l of the span (0-based)", ylabel="layers n in the span")
    edges = np.arange(count + 1) - 0.5
    squares = axes.pcolormesh(edges, edges + 1, shown, cmap=mpl.colormaps["viridis"].resampled(_COLOURS))
    for n, first in enumerate(shown.argmin(1), 1):
        frame = Rectangle((first - 0.5, n - 0.5), 1, 1, fill=False, edgecolor=_MARK, linewidth=1.8)
        axes.add_patch(frame).set_clip_on(False)
    if count <= _NUMBERED:
        _write_distances(axes, shown)
    axes.set_xticks(_ticks(count))
    axes.set_yticks(_ticks(count) + 1)
    scale = figure.colorbar(squares, ax=axes, label="angular distance d(l, n)\nof the last token (arccos / π)")
    scale.outline.set_visible(False)
    return figure


def last_layers(spans: Array) -> Figure:
    """Draw d(l, n), [layers, layers], over the last layer of the span, for 1, 2, a quarter and half of all layers."""
    from matplotlib.figure import Figure

    count = len(spans)
    height = 2.4
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    label = "angular distance d(l, n)\nof the last token (arccos / π)"
    axes = figure.add_subplot(xlabel="last layer of the span (0 is the first)", ylabel=label)
    points = []
    for colour, n in zip(LINE_COLOURS, lengths(count), strict=False):
        # The first of n layers can be any but the last n - 1.
        distances, name = spans[: count - n + 1, n - 1], "1 layer" if n == 1 else f"{n} layers"
        axes.plot(np.arange(n - 1, count), distances, color=colour, marker="o", markersize=4, label=name)
        points.append(Point(count - 1, distances[-1], name, colour))
    axes.set_xticks(_ticks(count))
    beside(axes, points, height)
    return figure


def lengths(count: int) -> list[int]:
    """Return the span lengths compared in a teacher of `count` layers (In Practice, Figure 8: 1, 2, 8, 16 of 32)."""
    return sorted({1, 2, count // 4, count // 2} - {0})


def _ticks(count: int) -> np.ndarray:
    """Return the layers with a tick: every one, or every other, third ... if there are many."""
    return np.arange(0, count, math.ceil(count / _TICKS))


def _write_distances(axes: Axes, shown: np.ma.MaskedArray) -> None:
    middle = (shown.min() + shown.max()) / 2
    for (row, first), distance in np.ma.ndenumerate(shown):
        # Black on the yellow half of the scale, white on the blue one, in either theme.
        colour = "black" if distance > middle else "white"
        axes.text(first, row + 1, f"{distance:.2f}", ha="center", va="center", color=colour)
