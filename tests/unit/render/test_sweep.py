"""The first metric over a swept number: the joined rows, by hand, and tables without such a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawn import answered, toy

from lit_prune.render import sweep
from lit_prune.render.sweep import Sweep
from lit_prune.report import Report


def report(folder: Path, points: dict[str, dict[str, Any]], losses: dict[str, list[float]] | None = None) -> Report:
    losses = losses or {row: [3.0 + place / 10] for place, row in enumerate(points)}
    return answered(folder, toy(points), {row: [{"lm_loss": loss} for loss in found] for row, found in losses.items()})


def swept(folder: Path, points: dict[str, dict[str, Any]], losses: dict[str, list[float]] | None = None) -> Sweep:
    found = sweep.sweep_of(report(folder, points, losses))
    assert found is not None
    return found


TOP = {f"top {k}" if k else "all": {"distill.top_k": k} for k in (None, 1000, 100, 2)}


def test_values_are_in_order_with_mean_and_interval_and_none_is_a_level(tmp_path: Path) -> None:
    losses = {"all": [3.0, 3.0], "top 1000": [3.1, 3.1], "top 100": [3.2, 3.4], "top 2": [5.0, 5.2], "teacher": [2.7]}
    found = swept(tmp_path, TOP, losses)
    (curve,) = found.curves.values()
    assert (found.field, found.log, found.title) == ("distill.top_k", True, "tokens compared (top_k)")
    assert list(curve.index) == [2, 100, 1000]
    assert curve["mean"].to_list() == pytest.approx([5.1, 3.3, 3.1])
    # Two seeds 0.2 apart: 12.706 times the standard error, 0.1; none where both are the same.
    assert curve["interval"].to_list() == pytest.approx([1.2706, 1.2706, 0], abs=1e-4)
    assert found.levels == {"all": pytest.approx(3.0)}


def test_lines_of_another_field_and_a_row_that_stands_alone(tmp_path: Path) -> None:
    points = {
        f"{share}, {name}": {"prune.num_hidden_layers": share, "prune.layer_selection": blocks, "distill.max_steps": 0}
        for share in (0.75, 0.5, 0.25)
        for name, blocks in (("lowest", "lowest"), ("tail", "tail"))
    }
    found = swept(
        tmp_path, points | {"0.5, lowest, again": {"prune.num_hidden_layers": 0.5, "prune.layer_selection": "lowest"}}
    )
    assert {name: list(curve.index) for name, curve in found.curves.items()} == {
        "lowest": [0.25, 0.5, 0.75], "tail": [0.25, 0.5, 0.75], "0.5, lowest, again": [0.5],
    }  # fmt: skip
    assert found.curves["tail"]["mean"].to_list() == pytest.approx([3.5, 3.3, 3.1])
    assert (found.field, found.log, found.levels) == ("prune.num_hidden_layers", False, {})


def test_curves_whose_rows_share_no_name_are_told_by_their_fields(tmp_path: Path) -> None:
    points = {
        f"{weight}/{tau}": {"distill.temperature": tau, "distill.ce_weight": weight}
        for weight in (0.0, 1.0)
        for tau in (0.5, 1.0, 3.0)
    }
    assert list(swept(tmp_path, points).curves) == ["ce_weight 0.0", "ce_weight 1.0"]


def test_nought_and_words_have_no_place_on_a_scale_of_decades(tmp_path: Path) -> None:
    points = {f"alpha {value}": {"distill.alpha": value} for value in ("dynamic", 0.0, 0.1, 1.0, 10.0)}
    found = swept(tmp_path, points)
    (curve,) = found.curves.values()
    assert list(curve.index) == [0.1, 1.0, 10.0]
    assert set(found.levels) == {"alpha dynamic", "alpha 0.0"}


def test_nought_has_its_place_where_no_decades_are_spanned(tmp_path: Path) -> None:
    found = swept(tmp_path, {f"alpha {value}": {"distill.alpha": value} for value in (0.0, 1.0, 2.0)})
    (curve,) = found.curves.values()
    assert (list(curve.index), found.log, found.levels) == ([0.0, 1.0, 2.0], False, {})


@pytest.mark.parametrize(
    "points",
    [
        {"off": {"distill.scale_by_temperature_squared": False}, "on": {"distill.scale_by_temperature_squared": True}},
        {loss: {"distill.logit_loss": loss} for loss in ("kld", "mse", "cosine")},
        {f"{k}": {"prune.num_iterations": k} for k in (1, 2)},
        {f"{k}": {"prune.num_hidden_layers": k, "prune.hidden_size": 32 * k} for k in (2, 3, 4)},
    ],
    ids=["switch", "words", "two values", "always with another"],
)
def test_no_figure_without_a_number_of_three_values(tmp_path: Path, points: dict[str, dict[str, Any]]) -> None:
    assert sweep.sweep_of(report(tmp_path, points)) is None


def test_rows_that_are_not_done_are_not_drawn(tmp_path: Path) -> None:
    assert sweep.sweep_of(report(tmp_path, TOP, {"all": [3.0], "top 1000": [3.1], "top 2": [5.0]})) is None


def test_what_is_drawn(tmp_path: Path) -> None:
    losses = {"all": [3.0], "top 1000": [3.1], "top 100": [3.3], "top 2": [5.1], "teacher": [2.7]}
    whole = report(tmp_path, TOP, losses)
    found = sweep.sweep_of(whole)
    assert found is not None
    (axes,) = sweep.curves(whole, found).axes
    joined = axes.containers[0].lines[0]
    assert (list(joined.get_xdata()), list(joined.get_ydata())) == ([2, 100, 1000], pytest.approx([5.1, 3.3, 3.1]))
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "100", "1000"]
    assert {text.get_text(): text.xy[1] for text in axes.texts} == {"all": 3.0, "teacher": 2.7}


def test_a_reference_far_away_does_not_squeeze_the_curve(tmp_path: Path) -> None:
    losses = {"all": [3.0], "top 1000": [3.1], "top 100": [3.3], "top 2": [3.4], "teacher": [1.0]}
    whole = report(tmp_path, TOP, losses)
    found = sweep.sweep_of(whole)
    assert found is not None
    (axes,) = sweep.curves(whole, found).axes
    assert [text.get_text() for text in axes.texts] == ["all"]
    assert axes.get_ylim()[0] > 2.9


def test_fewer_layers_are_on_the_right(tmp_path: Path) -> None:
    whole = report(tmp_path, {f"{k} blocks": {"prune.num_hidden_layers": k} for k in (5, 4, 3)})
    found = sweep.sweep_of(whole)
    assert found is not None
    left, right = sweep.curves(whole, found).axes[0].get_xlim()
    assert left > right
