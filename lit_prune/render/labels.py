"""Names beside points, far enough from each other to be read, and what a scale must leave out. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_prune.render.svg import DIM, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.6
"""Inches across a figure, which a phone shows whole and with letters that can be read."""
_FOLD = 24
# Inches from one line of a name to the next, and from the axes to the names; more where names are moved far.
_LINE, _ROOM, _SLOPE = 0.145, 0.14, 0.8
# A value is off the scale that is this often as far above the middle one as that is above the least.
_FAR = 8
# Intervals are shown up to this many times the range of the means away from them.
_BARS = 5


@dataclass(frozen=True)
class Point:
    """A place in the data and its name."""

    x: float
    y: float
    name: str
    colour: str = DIM
    """Of the line that leads to it."""
    ink: str = INK


def fold(name: str) -> str:
    """A row's name in lines that leave room for the figure."""
    return "\n".join(textwrap.wrap(name, _FOLD, break_long_words=False)) or name


def room_for(names: Sequence[str]) -> float:
    """Inches that names above each other take."""
    return _LINE * sum(fold(name).count("\n") + 1.15 for name in names)


def apart(places: Sequence[float], sizes: Sequence[float]) -> NDArray[np.float64]:
    """Ascending places from 0 to 1, moved for neighbours to be half of both their sizes apart and none to stand out,
    where there is room for that."""
    halves = np.asarray(sizes, float) / 2
    ends = np.cumsum(np.concatenate([[0.0], halves[:-1] + halves[1:]]))
    free = np.clip(np.asarray(places, float) - ends, halves[0], max(halves[0], 1 - halves[-1] - ends[-1]))
    # Moved up as little as that takes, and down as little; what lies between keeps the distances too.
    up, down = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    return (up + down) / 2 + ends


def beside(axes: Axes, points: Sequence[Point], height: float) -> None:
    """Write the names on the right of axes of so many inches, whose limits are final, and lead a line to each point."""
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
            arrowprops=lead | {"shrinkB": 3}, fontsize=8, color=point.ink, ha="left", va="center",
            annotation_clip=False, linespacing=1.0,
        )  # fmt: skip


def limits(axes: Axes, means: Sequence[float]) -> None:
    """Limits that show all means, and of their intervals what does not squeeze them into a line."""
    low, high = min(means), max(means)
    room = (high - low) or 1.0
    shown_low, shown_high = axes.get_ylim()
    axes.set_ylim(max(shown_low, low - _BARS * room), min(shown_high, high + _BARS * room))


def on_scale(values: Sequence[float]) -> NDArray[np.bool_]:
    """Which values can be drawn without squeezing the others into a line: not those far above the rest."""
    known = np.asarray(values, float)
    least, middle = np.nanmin(known), np.nanmedian(known)
    near = known <= middle + _FAR * (middle - least)
    return near if near.sum() > 1 else ~np.isnan(known)


def beyond(axes: Axes, told: Sequence[str]) -> None:
    """Say above the axes what lies beyond their scale."""
    if told:
        text = textwrap.fill("Beyond the scale: " + "; ".join(told), 70)
        axes.set_title(text, loc="left", fontsize=8, color=DIM)
