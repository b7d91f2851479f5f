"""Cost against loss: the front by hand, and reports without a trade-off."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from drawn import answered, toy

from lit_prune.render import pareto
from lit_prune.report import Report

METRICS = ("lm_loss", "parameters", "decode_speedup")
# Row -> loss, parameters, speed over the teacher's.
ROWS = {
    "small": (3.6, 1.0e6, 2.0), "middle": (3.3, 1.5e6, 1.6), "worse": (3.4, 1.6e6, 1.7), "equal": (3.3, 1.5e6, 1.5),
    "large": (3.0, 2.0e6, 1.2), "wasteful": (3.0, 2.1e6, 1.2),
}  # fmt: skip
TEACHER = {"teacher": [{"lm_loss": 2.7, "parameters": 2.5e6, "decode_speedup": 1.0}]}


def report(folder: Path, rows: dict[str, tuple[float, ...]], metrics: tuple[str, ...] = METRICS) -> Report:
    points = {row: {"distill.alpha": float(place)} for place, row in enumerate(rows)}
    found = {row: [dict(zip(metrics, values, strict=True))] for row, values in rows.items()}
    higher = tuple(name for name in metrics if name.endswith("speedup"))
    return answered(folder, toy(points, metrics=metrics, higher_is_better=higher), found | TEACHER)


def front(pairs: pd.DataFrame) -> set[str]:
    return set(pairs.index[pairs["front"]])


def test_the_front_by_hand(tmp_path: Path) -> None:
    found = pareto.fronts(report(tmp_path, ROWS))
    assert list(found) == ["parameters", "decode_speedup"]
    # Of two that are equal neither beats the other; wasteful has the loss of large and costs more.
    assert front(found["parameters"]) == {"small", "middle", "equal", "large"}
    # More speed is better: worse is faster than middle; equal is slower at the same loss.
    assert front(found["decode_speedup"]) == {"small", "middle", "worse", "large", "wasteful"}


def test_nothing_to_weigh(tmp_path: Path) -> None:
    speeds = report(tmp_path / "speeds", {"a": (2.0, 1.5), "b": (1.5, 1.0)}, ("prefill_speedup", "memory_share"))
    assert pareto.fronts(speeds) == {}
    alike = {"a": (3.0, 1.00e6, 1.0), "b": (3.1, 1.01e6, 1.0)}
    assert pareto.fronts(report(tmp_path / "alike", alike)) == {}
    assert pareto.fronts(report(tmp_path / "alone", {"a": (3.0, 1e6, 1.0)})) == {}
    others = report(tmp_path / "others", {"a": (3.0, 4.0), "b": (3.2, 9.0)}, ("lm_loss", "lm_loss_before"))
    assert pareto.fronts(others) == {}


def test_what_is_drawn_of_each_cost(tmp_path: Path) -> None:
    figure = pareto.trade_offs(report(tmp_path, ROWS))
    of_size, of_speed = figure.axes
    stairs = next(line for line in of_size.lines if line.get_drawstyle() == "steps-post")
    assert list(stairs.get_xdata()) == [1.0e6, 1.5e6, 1.5e6, 2.0e6]
    assert list(stairs.get_ydata()) == [3.6, 3.3, 3.3, 3.0]
    assert {text.get_text() for text in of_size.texts} == {*ROWS, "teacher"}
    assert (of_size.get_xlabel(), of_speed.get_xlabel()) == ("parameters", "decode speedup")
    assert any(line.get_drawstyle() == "steps-pre" for line in of_speed.lines)


def test_of_many_rows_those_of_the_front_are_named(tmp_path: Path) -> None:
    many = {f"row {k}": (3.0 + k / 10, 1e6 + k * 1e5, 1.0) for k in range(12)}
    (axes,) = pareto.trade_offs(report(tmp_path, many)).axes
    assert {text.get_text() for text in axes.texts} <= {"row 0", "teacher"}


def test_what_is_far_from_the_rows_is_told(tmp_path: Path) -> None:
    rows = {"a": (3.0, 1.00e6, 1.0), "b": (3.1, 1.05e6, 1.0), "random": (9.0, 1.02e6, 1.0)}
    (axes,) = pareto.trade_offs(report(tmp_path, rows)).axes
    assert axes.get_title(loc="left").replace("\n", " ") == (
        "Beyond the scale: random (1.02 M, 9.0000); teacher (2.50 M, 2.7000)"
    )
    assert axes.get_ylim()[1] < 4


def test_a_speed_that_was_asked_for_beside_the_table_is_weighed(tmp_path: Path) -> None:
    table = toy(
        {"a": {"distill.alpha": 0.0}, "b": {"distill.alpha": 1.0}},
        base_overrides={"evaluation.throughput.batch_size": 2},
    )
    cells = {
        "a": [{"lm_loss": 3.0, "speedup": 1.2, "memory_share": 0.9}],
        "b": [{"lm_loss": 3.1, "speedup": 1.5, "memory_share": 0.8}],
        "teacher": [{"lm_loss": 2.0, "speedup": 1.0, "memory_share": 1.0}],
    }
    found = answered(tmp_path, table, cells)
    assert found.table.metrics == ("lm_loss", "speedup", "memory_share")
    assert {name: front(pairs) for name, pairs in pareto.fronts(found).items()} == {
        "speedup": {"a", "b"}, "memory_share": {"a", "b"}
    }  # fmt: skip
