"""Draw the first metric over a number that a table sweeps. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from lit_prune.render import labels, metrics
from lit_prune.render.labels import WIDTH, Point
from lit_prune.render.numbers import number, signed
from lit_prune.render.svg import DIM, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_FIELDS = {
    "distill.top_k": "tokens compared (top_k)",
    "distill.temperature": "temperature (tau)",
    "distill.alpha": "weight of the intermediate states (alpha)",
    "distill.max_steps": "steps of the retraining",
    "prune.num_hidden_layers": "layers kept (a share where below 1)",
    "prune.num_iterations": "pruning iterations (T)",
}
# Fields whose axis is descending.
_FALLING = ("prune.num_hidden_layers",)
# Ratio of maximum to minimum from which the axis is logarithmic; most values with a tick each.
_DECADES, _TICKED = 30, 8


@dataclass(frozen=True, eq=False)
class Sweep:
    """Rows that differ in a number, grouped into curves of rows that differ in nothing else."""

    field: str
    """Dotted path of the swept field."""
    curves: Mapping[str, pd.DataFrame]
    """Name -> mean and interval (half the 95 % t interval) of the first metric, by ascending value."""
    levels: Mapping[str, float]
    """Means of the rows whose value is not on the axis, such as None."""
    log: bool
    """Whether the values span decades."""

    @property
    def title(self) -> str:
        """Return the label of the swept field."""
        return _FIELDS.get(self.field, self.field.rpartition(".")[2].replace("_", " "))


def sweep_of(report: Report) -> Sweep | None:
    """Return the number that distinguishes most rows: at least three values, or two if nothing else differs.

    None if the table sweeps no such number or its rows are not done.
    """
    rows = report.summary[~report.summary["reference"] & report.summary["mean"].notna()]
    cells = report.tidy[~report.tidy["reference"]].drop_duplicates("row").set_index("row").reindex(rows.index)
    swept = cells[[name for name in cells if "." in name]]
    found = [_along(str(name), swept, rows) for name in swept]
    joined = {sweep: sum(len(c) for c in sweep.curves.values() if len(c) > 1) for sweep in found if sweep}
    return max(joined, key=lambda sweep: joined[sweep]) if joined else None


def _along(field: str, swept: pd.DataFrame, rows: pd.DataFrame) -> Sweep | None:
    """Return the curves over one field."""
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
    """Return a name for each curve: the parts its row names share, or the fields in which it differs."""
    shared = [_shared(map(str, group.index)) for group in alike]
    lines = rest.loc[[group.index[0] for group in alike]]
    varied = lines.loc[:, lines.map(repr).nunique() > 1]
    paths = [path.rpartition(".")[2] for path in varied]
    fields = [
        ", ".join(f"{path} {value}" for path, value in zip(paths, line, strict=True)) for line in varied.to_numpy()
    ]
    return [other if shared.count(name) > 1 else name for name, other in zip(shared, fields, strict=True)]


def _curve(values: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[values.index, ["mean", "interval"]].set_axis(values, axis=0).sort_index()


def _shared(names: Iterable[str]) -> str:
    """Return the comma-separated parts that all names share; a single name is returned whole."""
    first, *others = [name.split(", ") for name in names]
    return ", ".join(part for part in first if all(part in other for other in others))


def curves(report: Report, sweep: Sweep) -> Figure:
    """Draw the first metric over the swept number: means with t intervals, joined if nothing else differs."""
    from matplotlib.figure import Figure

    metric = metrics.title(report.table.metrics[0])
    near = _near(sweep)
    colour_of = _colours(report, near)
    named = [name for name in labels.labelled(colour_of) if name]
    height = max(2.4, labels.room_for([*named, *sweep.levels, *report.table.reference_rows]))
    figure = Figure(figsize=(WIDTH, height + 0.6), layout="constrained")
    axes = figure.add_subplot(xlabel=sweep.title, ylabel=metric, xscale="log" if sweep.log else "linear")
    for name, curve in near.items():
        _draw_curve(axes, curve, colour_of[name])
    means = [mean for curve in near.values() for mean in curve["mean"]]
    axes.set_ylim(labels.limits(means, axes.get_ylim()))
    if sweep.field in _FALLING:
        axes.invert_xaxis()
    end = 0 if sweep.field in _FALLING else -1
    points = [
        Point(near[name].index[end], near[name]["mean"].iloc[end], name, colour_of[name], labels.ink(colour_of[name]))
        for name in named
    ]
    points += _levels(axes, report, sweep)
    _ticks(axes, sweep)
    labels.beside(axes, points, height)
    labels.note(axes, _outliers(sweep, near), len([name for name in near if name]) - len(named))
    return figure


def _near(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """Return the curves that are no outliers as a whole; a single far value is kept."""
    near = labels.on_scale([curve["mean"].min() for curve in sweep.curves.values()])
    return {name: curve for (name, curve), kept in zip(sweep.curves.items(), near, strict=True) if kept}


def _outliers(sweep: Sweep, near: Mapping[str, pd.DataFrame]) -> list[str]:
    return [
        f"{name} ({number(curve['mean'].min())} and above)" for name, curve in sweep.curves.items() if name not in near
    ]


def _colours(report: Report, curves: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return name -> colour: the longest curves are emphasised, and of equally long ones the best."""
    sign = -1 if report.table.metrics[0] in report.table.higher_is_better else 1
    preferred = sorted(curves, key=lambda name: (-len(curves[name]), sign * curves[name]["mean"].mean()))
    return labels.colours(list(curves), preferred)


def _draw_curve(axes: Axes, curve: pd.DataFrame, colour: str) -> None:
    grey = colour == DIM
    axes.errorbar(
        curve.index, curve["mean"], yerr=None if grey else curve["interval"], color=colour,
        linewidth=0.8 if grey else 1.5, alpha=0.6 if grey else 1.0, marker="o" if len(curve) > 1 else "D",
        markersize=3 if grey else 4.5, elinewidth=1, capsize=2,
    )  # fmt: skip


def _levels(axes: Axes, report: Report, sweep: Sweep) -> list[Point]:
    """Draw horizontal lines: rows whose value is not on the axis, and the references in range."""
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
    """Set a tick at each value if they are few."""
    from matplotlib.ticker import NullFormatter, NullLocator

    values = sorted({value for curve in sweep.curves.values() for value in curve.index})
    if len(values) <= _TICKED:
        axes.set_xticks(values, [signed(f"{value:g}") for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
