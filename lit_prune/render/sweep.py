"""Figure of a number that a table sweeps: the first metric over it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from lit_prune.render import labels, wording
from lit_prune.render.labels import WIDTH, Point
from lit_prune.render.svg import DIM, INK, stroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_FIELDS = {
    "distill.top_k": "tokens compared (top_k)",
    "distill.temperature": "temperature (tau)",
    "distill.alpha": "weight of the intermediate states (alpha)",
    "distill.steps": "steps of the retraining",
    "student.layers": "blocks kept (a share where below 1)",
    "student.rounds": "rounds of pruning (T)",
}
# Fields drawn from many to few.
_FALLING = ("student.layers",)
# From this ratio of the greatest to the least on, a scale is logarithmic; so many values all have a tick.
_DECADES, _TICKED = 30, 8


@dataclass(frozen=True, eq=False)
class Sweep:
    """Rows told apart by a number, in curves of those that differ in nothing else."""

    field: str
    """Dotted path of what is swept."""
    curves: Mapping[str, pd.DataFrame]
    """Name -> mean and interval (half width of the 95 % t interval) of the first metric, by value, ascending."""
    levels: Mapping[str, float]
    """Mean of the rows whose value has no place on the scale, such as none."""
    log: bool
    """Whether the values span decades."""

    @property
    def title(self) -> str:
        """What is swept, in words."""
        return _FIELDS.get(self.field, self.field.rpartition(".")[2].replace("_", " "))


def sweep_of(report: Report) -> Sweep | None:
    """The number that tells most rows apart: of three values or more, two of them where nothing else differs.

    None where the table sweeps no such number, or its rows are not done.
    """
    rows = report.summary[~report.summary["reference"] & report.summary["mean"].notna()]
    cells = report.tidy[~report.tidy["reference"]].drop_duplicates("row").set_index("row").reindex(rows.index)
    swept = cells[[name for name in cells if "." in name]]
    found = [_along(str(name), swept, rows) for name in swept]
    joined = {sweep: sum(len(c) for c in sweep.curves.values() if len(c) > 1) for sweep in found if sweep}
    return max(joined, key=lambda sweep: joined[sweep]) if joined else None


def _along(field: str, swept: pd.DataFrame, rows: pd.DataFrame) -> Sweep | None:
    """The rows along one field."""
    values = pd.to_numeric(swept[field].map(lambda value: None if isinstance(value, bool) else value), errors="coerce")
    placed = values[values > 0]
    log = bool(placed.max() >= _DECADES * placed.min())
    placed = placed if log else values.dropna()
    rest = pd.Series(list(map(repr, swept.drop(columns=field).to_numpy().tolist())), swept.index)
    alike = [group for _, group in placed.groupby(rest, sort=False)]
    if placed.nunique() < 3 or all(group.nunique() < 2 for group in alike):
        return None
    names = _names(alike, swept.drop(columns=field))
    found = {name: _curve(group, rows) for name, group in zip(names, alike, strict=True)}
    levels = rows["mean"].drop(placed.index)
    return Sweep(field, found, {str(row): mean for row, mean in levels.items()}, log)


def _names(alike: list[pd.Series], rest: pd.DataFrame) -> list[str]:
    """A name for each curve: what its rows' names share between commas, or the fields that tell it from the others."""
    shared = [_shared(map(str, group.index)) for group in alike]
    lines = rest.loc[[group.index[0] for group in alike]]
    told = lines.loc[:, lines.map(repr).nunique() > 1]
    paths = [path.rpartition(".")[2] for path in told]
    fields = [", ".join(f"{path} {value}" for path, value in zip(paths, line, strict=True)) for line in told.to_numpy()]
    return [other if shared.count(name) > 1 else name for name, other in zip(shared, fields, strict=True)]


def _curve(values: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[values.index, ["mean", "interval"]].set_axis(values, axis=0).sort_index()


def _shared(names: Iterable[str]) -> str:
    """What the names of rows have in common between commas; all of a single one; empty where they share nothing."""
    first, *others = [name.split(", ") for name in names]
    return ", ".join(part for part in first if all(part in other for other in others))


def curves(report: Report, sweep: Sweep) -> Figure:
    """The first metric over the swept number: means joined where nothing else differs, with their t intervals."""
    from matplotlib.figure import Figure

    metric = wording.title(report.table.metrics[0])
    names = [*sweep.curves, *sweep.levels]
    height = max(2.4, labels.room_for([*names, *report.table.references]))
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel=sweep.title, ylabel=metric, xscale="log" if sweep.log else "linear")
    # Towards fewer blocks, where the curves part.
    end = 0 if sweep.field in _FALLING else -1
    points = []
    for place, (name, curve) in enumerate(sweep.curves.items()):
        colour, dash = stroke(place)
        axes.errorbar(
            curve.index, curve["mean"], yerr=curve["interval"], color=colour, linestyle=dash, linewidth=1.5,
            marker="o" if len(curve) > 1 else "D", markersize=4.5, elinewidth=1, capsize=2,
        )  # fmt: skip
        if name:
            points.append(Point(curve.index[end], curve["mean"].iloc[end], name, colour))
    labels.limits(axes, [mean for curve in sweep.curves.values() for mean in curve["mean"]])
    if sweep.field in _FALLING:
        axes.invert_xaxis()
    points += _levels(axes, report, sweep)
    _ticks(axes, sweep)
    labels.beside(axes, points, height)
    return figure


def _levels(axes: Axes, report: Report, sweep: Sweep) -> list[Point]:
    """Horizontal lines: rows that have no place on the scale, and the references that are near."""
    levels = {name: (mean, INK, "--") for name, mean in sweep.levels.items()}
    low, high = axes.get_ylim()
    low, high = min([low, *sweep.levels.values()]), max([high, *sweep.levels.values()])
    scale = report.summary.loc[report.summary["reference"], "mean"]
    near = scale[(scale > low - (high - low)) & (scale < high + (high - low))]
    levels |= {str(name): (mean, DIM, ":") for name, mean in near.items()}
    for mean, colour, dash in levels.values():
        axes.axhline(mean, color=colour, linestyle=dash, linewidth=1)
    means = [mean for mean, _, _ in levels.values()]
    room = 0.03 * (high - low)
    axes.set(
        xlim=axes.get_xlim(), ylim=(min([low, *(m - room for m in means)]), max([high, *(m + room for m in means)]))
    )
    return [Point(axes.get_xlim()[1], mean, name, colour, colour) for name, (mean, colour, _) in levels.items()]


def _ticks(axes: Axes, sweep: Sweep) -> None:
    """A tick at each value, where they are few."""
    from matplotlib.ticker import NullFormatter, NullLocator

    values = sorted({value for curve in sweep.curves.values() for value in curve.index})
    if len(values) <= _TICKED:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
