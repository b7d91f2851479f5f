"""What there is to draw of a table as a whole, and what is to be known of each figure to read it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lit_prune.render import depth, figures, pareto, ranks, sweep, wording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_prune.report import Report

_OBJECTIVE = tuple(f"distill.{name}" for name in ("logit_loss", "temperature", "tau_squared", "top_k"))
_WINOGRANDE = "In Practice, Figure 9 (there the accuracy on Winogrande)"
PRINTED = {
    ("aggregation_ablation", "checks"): "Minitron, Figure 5",
    ("aggregation_ablation", "training"): "Minitron, Figure 5 (there the validation loss)",
    ("axes_ablation", "checks"): "Minitron, Figure 6, and In Practice, Figure 7",
    ("correction_ablation", "checks"): "In Practice, Figures 4 and 5",
    ("depth_ablation", "last_blocks"): "In Practice, Figure 8 (there the LM loss without the span)",
    ("depth_ablation", "checks"): _WINOGRANDE,
    ("depth_ablation", "training"): _WINOGRANDE,
    ("oneshot_ablation", "checks"): "Minitron, Figures 7 and 8",
    ("oneshot_ablation", "training"): "Minitron, Figures 7 and 8 (there accuracy and LM loss over all prunings)",
    ("search_ablation", "checks"): "Minitron, Figure 9",
    ("search_ablation", "ranks"): "Minitron, Figure 9, as ranks",
    ("strategy_ablation", "checks"): "In Practice, Figure 6",
    ("strategy_ablation", "sweep"): "In Practice, Figure 6 (there the loss on the way)",
    ("throughput_ablation", "final"): "In Practice, Figure 10",
}
"""(table, figure) -> the figure of the papers that it is nearest to, and where it is another."""


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn."""

    name: str
    draw: Callable[[], Figure]
    caption: str
    """A sentence: what is drawn, and what a line, a band, a dot stand for."""


def pictures(report: Report) -> list[Picture]:
    """The figures that a report has what it needs for, in the order they are read."""
    found = [*_values(report), *_on_the_way(report), *_of_rows(report), *_of_blocks(report)]
    printed = [PRINTED.get((report.table.name, picture.name)) for picture in found]
    return [
        replace(picture, caption=f"{own}: {picture.caption}" if own else _sentence(picture.caption))
        for picture, own in zip(found, printed, strict=True)
    ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _values(report: Report) -> Iterator[Picture]:
    if report.summary["n"].any():
        yield Picture(
            "final",
            lambda: figures.final_values(report),
            f"{wording.title(report.table.metrics[0])} of each row; a dot is a seed, a tick their mean, a bar its 95 %"
            " t interval, and vertical lines are the baseline and the rows measured for scale.",
        )


def _on_the_way(report: Report) -> Iterator[Picture]:
    band = "a line is the mean over seeds, its band from the least to the greatest"
    if not report.checks.empty:
        yield Picture(
            "checks",
            lambda: figures.check_curves(report.checks),
            f"validation LM loss of each row during the retraining; {band}; a line from above the panel begins there.",
        )
    if not ranks.ranks(report.checks).empty:
        ring = "; a ring marks where the two rows of a claim change places for good" if len(report.flips) else ""
        yield Picture(
            "ranks",
            lambda: ranks.rank_lines(report),
            f"rank of each row by its mean validation LM loss at each check{ring}.",
        )
    if report.checks.empty and comparable(report):
        yield Picture(
            "training",
            lambda: training_curves(report),
            f"logit loss of the rows that imitate the teacher, over the steps of their last retraining; {band}.",
        )


def _of_rows(report: Report) -> Iterator[Picture]:
    metric = wording.title(report.table.metrics[0])
    found = sweep.sweep_of(report)
    if found is not None:
        yield Picture(
            "sweep",
            lambda: sweep.curves(report, found),
            f"{metric} over {found.title}; a dot is the mean over seeds with its 95 % t interval, lines join rows that "
            "differ in nothing else; a horizontal line is a row without such a number, a dotted one for scale.",
        )
    if not ranks.beside_paper(report).empty:
        yield Picture(
            "agreement",
            lambda: ranks.paper_and_ours(report),
            f"{metric} here over that of the paper; a dot is a row's mean over seeds with its 95 % t interval; "
            f"{wording.agreement(report)}.",
        )
    if fronts := pareto.fronts(report):
        costs = " and over ".join(map(pareto.title, fronts))
        yield Picture(
            "pareto",
            lambda: pareto.trade_offs(report),
            f"{metric} over {costs}; a dot is a row, and the staircase joins those that no other row beats in both.",
        )


def _of_blocks(report: Report) -> Iterator[Picture]:
    blocks = report.blocks
    if blocks is None:
        return
    yield Picture(
        "blocks",
        lambda: depth.block_scores(blocks),
        "what each block of the teacher is worth; a bar is the mean over the calibration draws, dots are the draws.",
    )
    if (spans := blocks.spans) is not None:
        yield Picture(
            "spans",
            lambda: depth.span_distances(spans),
            "angular distance between the inputs of block l and of block l + n; a frame marks the least of each n, the "
            "span that goes first.",
        )
        if (report.table.name, "last_blocks") in PRINTED:
            yield Picture(
                "last_blocks",
                lambda: depth.last_blocks(spans),
                "how much a span of so many blocks changes its input, over the last of them; the mean over the "
                "calibration draws.",
            )


def comparable(report: Report) -> bool:
    """Whether two rows or more imitate the teacher by the same logit loss."""
    histories, rows = report.histories, report.tidy[~report.tidy["reference"]]
    if "logits" not in histories or any(rows[name].map(repr).nunique() > 1 for name in _OBJECTIVE if name in rows):
        return False
    return histories.dropna(subset=["logits"])["row"].nunique() > 1


def training_curves(report: Report) -> Figure:
    """Logit loss over the steps of the retraining, of the rows that have one."""
    return figures.check_curves(report.histories.dropna(subset=["logits"]), "logits", "logit loss in training")
