"""The figures of a report and their captions; names beside points."""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from drawn import answered, toy
from matplotlib.figure import Figure
from matplotlib.text import Text

from lit_prune.render import depth, files, labels, numbers, svg
from lit_prune.render.catalog import KINDS, captions, inline, overviews
from lit_prune.report import Report, record
from lit_prune.report.layer_scores import LayerScores

KEPT = {f"{k} blocks": {"prune.num_hidden_layers": k} for k in (5, 4, 3)}
METRICS = ("lm_loss", "parameters")
FOUND = {row: [{"lm_loss": 3.0 + k / 10, "parameters": 2e6 - k * 1e5}] for k, row in enumerate(KEPT)}
COURSES = {row: {0: 4.0 - k / 10, 10: 3.0 + k / 10} for k, row in enumerate(KEPT)}
PAPER = {row: {"lm_loss": 2.0 + k / 100} for k, row in enumerate(KEPT)}
SPANS = np.array([[0.4, 0.5, 0.6, 0.7], [0.1, 0.2, 0.3, np.nan], [0.2, 0.3, np.nan, np.nan], [0.3, *[np.nan] * 3]])


def whole(folder: Path, name: str = "toy", **given: Any) -> Report:
    table = toy(KEPT, metrics=METRICS, name=name, paper=PAPER)
    found = answered(folder, table, FOUND, **given)
    return dataclasses.replace(found, layer_scores=LayerScores(influence=SPANS[:1], damage=None, spans=SPANS))


def test_every_figure_of_a_report_that_has_everything_in_order_with_its_caption(tmp_path: Path) -> None:
    report = whole(tmp_path, courses=COURSES, logits=COURSES)
    names = ["final", "validation", "ranks", "sweep", "agreement", "pareto", "layers", "spans"]
    assert list(overviews(report)) == list(captions(report)) == names
    for caption in captions(report).values():
        assert re.fullmatch(r"[A-Z][^\n]*\.", caption)
    assert "Kendall's tau +1.00 over 3 rows" in captions(report)["agreement"]


def test_those_of_the_papers_lead_and_then_the_first_ones(tmp_path: Path) -> None:
    def leading(name: str, **given: Any) -> list[str]:
        return [figure["name"] for figure in inline(whole(tmp_path / name, name, **given)) if figure["leading"]]

    assert leading("toy", courses=COURSES) == ["final", "validation"]
    assert leading("search_ablation", courses=COURSES) == ["validation", "ranks"]
    assert leading("depth_ablation") == ["final", "last_layers"]


def test_a_caption_is_title_and_key(tmp_path: Path) -> None:
    drawn = inline(whole(tmp_path, courses=COURSES))
    assert {figure["name"] for figure in drawn} <= set(KINDS)
    for figure in drawn:
        assert figure["caption"] == f"{figure['title']} {figure['key']}".strip()
        assert f'aria-label="{html.escape(figure["caption"])}"' in figure["svg"]


def test_a_record_has_the_same_figures(tmp_path: Path) -> None:
    report = whole(tmp_path / "store", courses=COURSES, logits=COURSES)
    for name, text in record.texts(report).items():
        (tmp_path / name).write_text(text)
    assert captions(record.read(tmp_path, report.table)) == captions(report)


def test_reference_models_alone_are_not_drawn(tmp_path: Path) -> None:
    report = answered(tmp_path / "store", toy(KEPT), {"teacher": [{"lm_loss": 2.0}]})
    assert captions(report) == {}
    assert [path for path in files.write_files(report, tmp_path / "report") if path.name == "report.html"]


def test_training_is_drawn_without_validations(tmp_path: Path) -> None:
    assert list(captions(whole(tmp_path, logits=COURSES)))[:2] == ["final", "training"]


def test_logit_losses_of_another_kind_are_not_compared(tmp_path: Path) -> None:
    points = {"kld": {"distill.logit_loss": "kld"}, "mse": {"distill.logit_loss": "mse"}}
    found = {row: [{"lm_loss": 3.0}] for row in points}
    logits = {row: {10: 1.0, 20: 0.5} for row in points}
    assert list(captions(answered(tmp_path / "two", toy(points), found, logits=logits))) == ["final"]
    alone = {"kld": points["kld"], "scratch": {"distill.kd_weight": 0.0}}
    report = answered(tmp_path / "one", toy(alone), {"kld": found["kld"]}, logits={"kld": logits["kld"]})
    assert list(captions(report)) == ["final"]


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert overviews(answered(tmp_path, toy(KEPT), {row: [] for row in KEPT})) == {}


def test_the_papers_own_figure_is_named(tmp_path: Path) -> None:
    assert captions(whole(tmp_path / "a", "search_ablation", courses=COURSES))["validation"].startswith(
        "Minitron, Figure 9"
    )
    of_depth = captions(whole(tmp_path / "b", "depth_ablation", logits=COURSES))
    assert list(of_depth)[-1] == "last_layers"
    assert of_depth["last_layers"].startswith("In Practice, Figure 8 (")
    assert of_depth["training"].startswith("In Practice, Figure 9 (")


def test_spans_by_their_last_block() -> None:
    (axes,) = depth.last_layers(SPANS).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    # Of four blocks: one, which is a quarter, and two, which are half.
    assert drawn == {"1 layer": ([0, 1, 2, 3], [0.4, 0.1, 0.2, 0.3]), "2 layers": ([1, 2, 3], [0.5, 0.2, 0.3])}


@pytest.mark.parametrize(("count", "compared"), [(32, [1, 2, 8, 16]), (6, [1, 2, 3]), (3, [1, 2])])
def test_the_lengths_are_the_papers_shares(count: int, compared: list[int]) -> None:
    assert depth.lengths(count) == compared


@pytest.mark.parametrize(
    ("places", "sizes", "moved"),
    [
        ([0.2, 0.5, 0.9], [0.1, 0.1, 0.1], [0.2, 0.5, 0.9]),
        ([0.5, 0.5], [0.2, 0.2], [0.4, 0.6]),
        ([0.5, 0.5, 0.5], [0.1, 0.3, 0.1], [0.3, 0.5, 0.7]),
        ([0.0, 0.0, 0.9], [0.2, 0.2, 0.2], [0.1, 0.3, 0.9]),
        ([1.0, 1.0], [0.2, 0.2], [0.7, 0.9]),
        ([0.4], [0.2], [0.4]),
    ],
)
def test_names_are_moved_apart_and_stay_inside(places: list[float], sizes: list[float], moved: list[float]) -> None:
    assert labels.apart(places, sizes) == pytest.approx(moved)


def test_what_is_far_above_the_rest_is_off_the_scale() -> None:
    assert labels.on_scale([3.21, 3.23, 3.27, 3.6, 6.35]).tolist() == [True, True, True, True, False]
    assert labels.on_scale([3.0, 4.0, 8.0]).tolist() == [True] * 3
    # Two outliers close to each other, and a metric that most rows share.
    assert labels.on_scale([6.4, 3.2, 3.3, 3.4, 6.3]).tolist() == [False, True, True, True, False]
    assert labels.on_scale([3.0, 3.0, 9.0]).tolist() == [True, True, False]
    assert labels.on_scale([3.0, 3.0, 3.0]).tolist() == [True] * 3
    assert labels.on_scale([3.0, 9.0]).tolist() == [True, True]


def test_a_row_that_ends_far_above_the_others_leaves_them_their_scale(tmp_path: Path) -> None:
    courses = {"5 blocks": {0: 9.0, 10: 3.0}, "4 blocks": {0: 9.0, 10: 3.1}, "3 blocks": {0: 9.0, 10: 7.0}}
    (axes,) = overviews(whole(tmp_path, courses=courses))["validation"].axes
    assert {text.get_text() for text in axes.texts} == {"5 blocks", "4 blocks"}
    assert axes.get_title(loc="left") == "Beyond the scale: 3 blocks (ends at 7.0000)"
    assert axes.get_ylim()[1] < 4


def test_five_rows_are_emphasised_and_the_others_grey() -> None:
    names = [f"row {k}" for k in range(12)]
    colour_of = labels.colours(names, ["row 7", "row 2", "row 7", "absent"])
    assert [name for name in names if colour_of[name] != svg.DIM] == ["row 0", "row 1", "row 2", "row 3", "row 7"]
    assert len(set(colour_of.values())) == 6
    assert labels.labelled(colour_of) == ["row 0", "row 1", "row 2", "row 3", "row 7"]
    assert labels.labelled(labels.colours(names[:10], [])) == names[:10]


@pytest.mark.parametrize(
    ("steps", "ticks"), [([0, 12, 25, 38, 50], [0, 12, 25, 38, 50]), (list(range(0, 110, 10)), list(range(0, 110, 20)))]
)
def test_ticks_are_on_validated_steps_and_on_the_last_one(steps: list[int], ticks: list[int]) -> None:
    axes = Figure().add_subplot()
    labels.step_ticks(axes, steps)
    assert list(axes.get_xticks()) == ticks


def test_an_outlier_is_written_at_the_edge_of_the_final_values(tmp_path: Path) -> None:
    points = {row: {"distill.alpha": k / 10} for k, row in enumerate("abc")}
    losses = {"a": [{"lm_loss": 3.0}], "b": [{"lm_loss": 3.1}], "c": [{"lm_loss": 9.0}]}
    (axes,) = overviews(answered(tmp_path, toy(points), losses))["final"].axes
    assert axes.get_xlim()[1] < 4
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [text.xy for text in axes.texts if "9.0000" in text.get_text()] == [(1, 2)]


def test_tick_labels_of_long_numbers_do_not_overlap(tmp_path: Path) -> None:
    points = {row: {"distill.alpha": k / 10} for k, row in enumerate(("alpha dynamic", "alpha 1", "alpha 10"))}
    losses = {row: [{"lm_loss": 4.4925 + k / 128}] for k, row in enumerate(points)}
    figure = overviews(answered(tmp_path, toy(points), losses))["final"]
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(boxes) >= 3
    assert all(right.x0 - left.x1 > 3 for left, right in itertools.pairwise(boxes))


def test_all_text_has_one_size_and_negative_numbers_a_real_minus_sign(tmp_path: Path) -> None:
    report = whole(tmp_path, courses=COURSES, logits=COURSES)
    with mpl.rc_context(svg.style("salt")):
        for figure in overviews(report).values():
            figure.canvas.draw()
            texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
            assert {text.get_fontsize() for text in texts} == {9}
    assert numbers.signed("-1.5") == "\N{MINUS SIGN}1.5"


def test_a_page_is_told_how_large_a_figure_may_be() -> None:
    figure = Figure(figsize=(4.0, 2.0))
    figure.add_subplot()
    assert 'style="min-width: 288px; max-width: 475px"' in svg.inline(figure, "small", "a small one")
