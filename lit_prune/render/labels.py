"""Place labels beside lines and points, colour emphasised rows, and limit axes without outliers. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_prune.render.svg import COLOURS, DIM, INK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from lit_prune.report import Report

WIDTH = 4.6
"""Width of a figure in inches; fits a phone at a readable type size."""
_FOLD = 24
# Inches between lines of a name and from the axes to the names; the latter grows if names move far.
_LINE, _ROOM, _SLOPE = 0.16, 0.14, 0.8
# An outlier lies above a gap of more than this many times the range of the values below the gap.
_GAP = 4
# Intervals are shown up to this many times the range of the means beyond them.
_BARS = 5
# Most lines of a panel with labels on grey ones too; most validated steps with a tick each.
_LABELLED, _TICKS = 10, 8


@dataclass(frozen=True)
class Point:
    """A point of the data and its label."""

    x: float
    y: float
    name: str
    colour: str = DIM
    """Colour of the line that leads to the label."""
    ink: str = INK


def fold(name: str) -> str:
    """Wrap the name of a row to leave room for the figure."""
    return "\n".join(textwrap.wrap(name, _FOLD, break_long_words=False)) or name


def room_for(names: Sequence[str]) -> float:
    """Return the height in inches of names stacked above each other."""
    return _LINE * sum(fold(name).count("\n") + 1.15 for name in names)


def apart(places: Sequence[float], sizes: Sequence[float]) -> NDArray[np.float64]:
    """Return ascending places in 0 to 1, moved so that neighbours do not overlap and none lies outside.

    If there is too little room, the last ones lie outside.
    """
    halves = np.asarray(sizes, float) / 2
    ends = np.cumsum(np.concatenate([[0.0], halves[:-1] + halves[1:]]))
    free = np.clip(np.asarray(places, float) - ends, halves[0], max(halves[0], 1 - halves[-1] - ends[-1]))
    # The smallest moves up and down; their mean keeps the distances too.
    up, down = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    return (up + down) / 2 + ends


def beside(axes: Axes, points: Sequence[Point], height: float) -> None:
    """Write names right of axes that are `height` inches high and have final limits, each with a line to its point."""
    if not points:
        return
    low, high = axes.get_ylim()
    ranked = sorted(points, key=lambda point: (point.y - low) / (high - low))
    sizes = [room_for([point.name]) / height for point in ranked]
    places = apart([(point.y - low) / (high - low) for point in ranked], sizes)
    room = _ROOM + _SLOPE * max(
        abs(place - (point.y - low) / (high - low)) for point, place in zip(ranked, places, strict=True)
    )
    for point, place in zip(ranked, places, strict=True):
        lead = {
            "arrowstyle": "-",
            "color": point.colour,
            "linewidth": 0.7,
            "alpha": 0.7,
            "relpos": (0, 0.5),
            "shrinkA": 1,
        }
        axes.annotate(
            fold(point.name), (point.x, point.y), (1 + room / WIDTH, place), "data", "axes fraction",
            arrowprops=lead | {"shrinkB": 3}, color=point.ink, ha="left", va="center",
            annotation_clip=False, linespacing=1.0,
        )  # fmt: skip


def emphasised(report: Report, ends: pd.Series) -> dict[str, str]:
    """Return row -> colour for `ends`, the last loss of each row, by `colours`.

    The baseline and the best row come first, then the rows of claims in the order of the table.
    """
    claimed = [row for claim in report.table.claims for row in claim.rows]
    best = [str(row) for row in ends.sort_values(kind="stable").index]
    rows = [str(row) for row in report.summary.index if row in ends.index]
    return colours(rows, [report.table.baseline, *best[:1], *claimed, *best])


def colours(names: Sequence[str], preferred: Sequence[str]) -> dict[str, str]:
    """Return name -> colour: five are emphasised, the first of `preferred`; the rest are grey."""
    vivid = list(dict.fromkeys(name for name in [*preferred, *names] if name in names))[: len(COLOURS)]
    palette = iter(COLOURS)
    return {name: next(palette) if name in vivid else DIM for name in names}


def labelled(colour_of: Mapping[str, str]) -> list[str]:
    """Return the names to write beside their lines: all if they are few, else the emphasised ones."""
    return [name for name, colour in colour_of.items() if len(colour_of) <= _LABELLED or colour != DIM]


def ink(colour: str) -> str:
    """Return the colour of the label of a line: grey for a grey one."""
    return DIM if colour == DIM else INK


def limits(means: Sequence[float], bars: tuple[float, float]) -> tuple[float, float]:
    """Return limits that show all means, and as much of the intervals, `bars`, as keeps the means distinguishable."""
    low, high = min(means), max(means)
    room = (high - low) or 1.0
    return max(bars[0], low - _BARS * room), min(bars[1], high + _BARS * room)


def on_scale(values: Sequence[float]) -> NDArray[np.bool_]:
    """Return a mask of the values that are no outliers: those below the last wide gap, if they are the majority."""
    known = np.asarray(values, float)
    ranked = np.sort(known[~np.isnan(known)])
    for place in range(len(ranked) - 1, len(ranked) // 2, -1):
        if place > 1 and ranked[place] - ranked[place - 1] > _GAP * (ranked[place - 1] - ranked[0]):
            return known < ranked[place]
    return ~np.isnan(known)


def step_ticks(axes: Axes, steps: Sequence[float]) -> None:
    """Set x ticks on validated steps: all, or every other, third ... counted back from the last one."""
    ordered = sorted(set(steps))
    every = -(-len(ordered) // _TICKS)
    axes.set_xticks(ordered[::-1][::every][::-1])


def note(axes: Axes, outliers: Sequence[str], num_unlabelled: int = 0) -> None:
    """Write above the axes the rows beyond the scale and the number of grey lines without a label."""
    lines = ["Beyond the scale: " + "; ".join(outliers)] if outliers else []
    lines += [f"Grey: {num_unlabelled} other rows"] if num_unlabelled else []
    if lines:
        axes.set_title("\n".join(textwrap.fill(line, 62) for line in lines), loc="left", color=DIM)
