"""List the figures of a report, with their captions. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_prune.render import depth, figures, metrics, pareto, ranks, svg, sweep, wording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_OBJECTIVE = tuple(f"distill.{name}" for name in ("logit_loss", "temperature", "scale_by_temperature_squared", "top_k"))
_WINOGRANDE = "In Practice, Figure 9 (there the accuracy on Winogrande)"
PRINTED = {
    ("aggregation_ablation", "validation"): "Minitron, Figure 5",
    ("aggregation_ablation", "training"): "Minitron, Figure 5 (there the validation loss)",
    ("axes_ablation", "validation"): "Minitron, Figure 6, and In Practice, Figure 7",
    ("correction_ablation", "validation"): "In Practice, Figures 4 and 5",
    ("depth_ablation", "last_layers"): "In Practice, Figure 8 (there the LM loss without the span)",
    ("depth_ablation", "validation"): _WINOGRANDE,
    ("depth_ablation", "training"): _WINOGRANDE,
    ("oneshot_ablation", "validation"): "Minitron, Figures 7 and 8",
    ("oneshot_ablation", "training"): "Minitron, Figures 7 and 8 (there accuracy and LM loss over all prunings)",
    ("search_ablation", "validation"): "Minitron, Figure 9",
    ("search_ablation", "ranks"): "Minitron, Figure 9, as ranks",
    ("strategy_ablation", "validation"): "In Practice, Figure 6",
    ("strategy_ablation", "sweep"): "In Practice, Figure 6 (there the loss on the way)",
    ("throughput_ablation", "final"): "In Practice, Figure 10",
}
"""(table, figure) -> the figure of the papers it corresponds to, and how it differs."""


KINDS = {
    "final": "values of the rows", "validation": "validation loss", "ranks": "ranks", "training": "logit loss",
    "sweep": "sweep", "agreement": "beside the paper", "pareto": "Pareto front", "layers": "layers",
    "spans": "spans of layers", "last_layers": "last layer of a span",
}  # fmt: skip
"""Figure -> short name."""
_LEADING = 2
_COLOURS = "Of more than five rows the baseline, the best and those of claims have a colour."


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn, with its caption."""

    name: str
    draw: Callable[[], Figure]
    title: str
    """Sentence about the content."""
    key: str
    """Meaning of lines, bands and dots."""
    printed: bool = False
    """Whether it corresponds to a figure of the papers, which the title then names."""

    @property
    def caption(self) -> str:
        """Return title and key."""
        return f"{self.title} {self.key}".strip()


def pictures(report: Report) -> list[Picture]:
    """Return the figures that the report has data for, in reading order."""
    found = [*_values(report), *_on_the_way(report), *_of_rows(report), *_of_layers(report)]
    printed = [PRINTED.get((report.table.name, picture.name)) for picture in found]
    return [
        replace(picture, title=f"{own}: {picture.title}", printed=True) if own
        else replace(picture, title=picture.title[0].upper() + picture.title[1:])
        for picture, own in zip(found, printed, strict=True)
    ]  # fmt: skip


def captions(report: Report) -> dict[str, str]:
    """Return name -> caption of each figure that the report has data for."""
    return {picture.name: picture.caption for picture in pictures(report)}


def inline(report: Report, prefix: str = "") -> list[dict[str, Any]]:
    """Return each figure as inline SVG, whose ids begin with `prefix`, with its name, kind, title, key and caption.

    `leading` marks the two to look at first: figures that correspond to one of the papers, then in reading order.
    """
    import matplotlib as mpl

    found = pictures(report)
    leading = sorted(found, key=lambda picture: not picture.printed)[:_LEADING]
    with mpl.rc_context(svg.style(report.table.name)):
        return [
            {
                "name": picture.name, "title": picture.title, "key": picture.key, "caption": picture.caption,
                "kind": KINDS[picture.name], "leading": picture in leading,
                "svg": svg.inline(picture.draw(), prefix + picture.name, picture.caption),
            }
            for picture in found
        ]  # fmt: skip


def overviews(report: Report) -> dict[str, Figure]:
    """Return name -> figure, for the names of `captions`."""
    return {picture.name: picture.draw() for picture in pictures(report)}


def learning_curves(report: Report) -> dict[str, Figure]:
    """Return row -> figure of its training loss over the steps: mean and range over the seeds."""
    rows = report.histories.groupby("row", sort=False)
    return {str(row): figures.panel(figures.curve_of(history, "loss"), None) for row, history in rows}


def _values(report: Report) -> Iterator[Picture]:
    if not figures.measured_rows(report).empty:
        yield Picture(
            "final",
            lambda: figures.final_values(report),
            f"{metrics.title(report.table.metrics[0])} of each row: dots are seeds, ticks their mean, bars 95 % t "
            "intervals.",
            "Vertical lines are the baseline and the reference models. Outliers are written at the edge.",
        )


def _on_the_way(report: Report) -> Iterator[Picture]:
    if not report.checks.empty:
        yield Picture(
            "validation",
            lambda: figures.validation_curves(report),
            "validation LM loss of each row during the retraining, mean and range over the seeds.",
            f"{_COLOURS} Losses above the panel are cut off.",
        )
    if ranks.order_changes(ranks.ranks(report.checks)):
        yield Picture(
            "ranks",
            lambda: ranks.rank_lines(report),
            "rank of each row by its mean validation LM loss at each validation.",
            "A ring marks where the two rows of a claim change places for good." if len(report.flips) else "",
        )
    if report.checks.empty and comparable(report):
        yield Picture(
            "training",
            lambda: figures.training_curves(report),
            "logit loss of the rows trained on the teacher's logits, over the steps of the last retraining, mean and "
            "range over the seeds.",
            _COLOURS,
        )


def _of_rows(report: Report) -> Iterator[Picture]:
    metric = metrics.title(report.table.metrics[0])
    found = sweep.sweep_of(report)
    if found is not None:
        yield Picture(
            "sweep",
            lambda: sweep.curves(report, found),
            f"{metric} over {found.title}.",
            "Dots are means over seeds with 95 % t intervals; lines join rows that differ in nothing else; dashed "
            "lines are rows without such a number, dotted ones reference models.",
        )
    if not ranks.beside_paper(report).empty:
        yield Picture(
            "agreement",
            lambda: ranks.paper_and_ours(report),
            f"{metric} here over that of the paper: {wording.agreement(report)}.",
            "Dots are means over seeds with 95 % t intervals.",
        )
    if fronts := pareto.fronts(report):
        costs = " and over ".join(map(pareto.title, fronts))
        yield Picture(
            "pareto",
            lambda: pareto.trade_offs(report),
            f"{metric} over {costs}.",
            "Dots are rows; the staircase is the Pareto front, stars are reference models.",
        )


def _of_layers(report: Report) -> Iterator[Picture]:
    layers = report.layer_scores
    if layers is None:
        return
    yield Picture(
        "layers",
        lambda: depth.layer_scores(layers),
        "importance of each layer of the teacher.",
        "Bars are means over the calibration draws, dots are the draws.",
    )
    if (spans := layers.spans) is not None:
        yield Picture(
            "spans",
            lambda: depth.span_distances(spans),
            "angular distance between the inputs of layers l and l + n.",
            "A frame marks the minimum of each n, the span that is dropped first.",
        )
        if (report.table.name, "last_layers") in PRINTED:
            yield Picture(
                "last_layers",
                lambda: depth.last_layers(spans),
                "angular distance between input and output of a span of layers, over the last layer of the span.",
                "Lines are means over the calibration draws.",
            )


def comparable(report: Report) -> bool:
    """Return whether at least two rows train with the same logit loss."""
    histories, rows = report.histories, report.tidy[~report.tidy["reference"]]
    if "kd_loss" not in histories or any(rows[name].map(repr).nunique() > 1 for name in _OBJECTIVE if name in rows):
        return False
    return histories.dropna(subset=["kd_loss"])["row"].nunique() > 1
