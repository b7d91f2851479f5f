"""Losses during retraining: the order of the rows at each validation against the final one, by hand and as shown."""

from __future__ import annotations

import html
import io
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from lit_prune.config import Cell, Corpus, Distill, Profile, Teacher
from lit_prune.config.table import Claim, Table
from lit_prune.pipeline.expand import Entry, entries
from lit_prune.render import figures, files, terminal, wording
from lit_prune.render.catalog import captions
from lit_prune.report import Report, assemble
from lit_prune.report.trajectories import flips, ranks
from lit_prune.store import Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64), distill=Distill(max_steps=30))
TABLE = Table(
    name="toy", question="Which?", source="nowhere", baseline="kld",
    rows={loss: {"distill.logit_loss": loss} for loss in ("kld", "mse", "cosine")},
    claims=(
        Claim("kld", "mse", ""), Claim("mse", "kld", "", metric="kd_loss_before"), Claim("kld", "cosine", ""),
        Claim("mse", "cosine", ""),
    ),
    metrics=("lm_loss", "kd_loss_before"),
    reference_rows={"as it is": {"distill.max_steps": 0}},
)  # fmt: skip
STEPS = [0, 10, 20, 30]
# By row, of seed 0; seed 1 is the same and 0.02 more.
LOSSES = {"kld": [6.0, 4.0, 3.6, 3.0], "mse": [5.0, 4.1, 3.5, 3.2], "cosine": [7.0, 5.0, 4.0, 3.1]}


def course(losses: dict[str, list[float]], seeds: int = 1, steps: list[int] = STEPS) -> pd.DataFrame:
    lines = [
        {"row": row, "seed": seed, "step": step, "lm_loss": loss + 0.02 * seed, "kd_loss": math.nan}
        for row, values in losses.items()
        for seed in range(seeds)
        for step, loss in zip(steps, values, strict=False)
    ]
    return pd.DataFrame(lines)


def finish(store: Store, entry: Entry, checked: bool = True) -> None:
    losses = LOSSES.get(entry.row if not entry.reference else "cosine", [])
    with store.claim(entry.cell, "cell") as node:
        if checked:
            checks = course({entry.row: losses}, 2).query(f"seed == {entry.seed}").drop(columns=["row", "seed"])
            checks.to_csv(node.folder / "checks.csv", index=False)
        node.finish({"lm_loss": losses[-1] + entry.seed / 7, "kd_loss_before": losses[0]}, seconds=1.0, commit="abc")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    requested, store = entries(TABLE, Profile(CELL, 2)), Store(tmp_path_factory.mktemp("store"))
    for entry in requested:
        finish(store, entry)
    return assemble(TABLE, "tiny", {}, requested, store)


def test_checks_are_those_of_trained_rows_with_their_seed(found: Report) -> None:
    assert list(found.checks.columns) == ["row", "seed", "step", "lm_loss", "kd_loss"]
    assert set(found.checks["row"]) == set(LOSSES)
    assert len(found.checks) == 3 * 2 * 4
    (line,) = found.checks.query("row == 'mse' and seed == 1 and step == 20").to_dict("records")
    assert line["lm_loss"] == pytest.approx(3.52)
    assert math.isnan(line["kd_loss"])


def test_the_order_at_each_check_against_the_end_by_hand() -> None:
    # The end is kld, cosine, mse: of its three pairs mse, kld, cosine (at 0 and 20) has one, kld, mse, cosine (10) two.
    tau = ranks(course(LOSSES, seeds=2))
    assert tau["step"].to_list() == STEPS
    assert tau["tau"].to_list() == pytest.approx([-1 / 3, 1 / 3, -1 / 3, 1])
    assert tau["n"].to_list() == [3, 3, 3, 3]


def test_rows_are_ordered_by_their_mean_over_seeds() -> None:
    two = course({"kld": [5.0, 3.0], "mse": [6.0, 4.0]}, 2, [0, 10])
    two.loc[(two["row"] == "kld") & (two["seed"] == 1) & (two["step"] == 0), "lm_loss"] = 9.0  # mean 7 against 6.01
    assert ranks(two)["tau"].to_list() == pytest.approx([-1, 1])


def test_a_row_that_does_not_reach_the_end_is_not_ranked() -> None:
    short = course({**LOSSES, "cosine": LOSSES["cosine"][:2]})
    tau = ranks(short)
    assert tau["n"].to_list() == [2, 2, 2, 2]
    assert tau["tau"].to_list() == pytest.approx([-1, 1, -1, 1])


def test_one_row_or_one_check_has_no_order_that_moves() -> None:
    assert ranks(course({"kld": LOSSES["kld"]})).empty
    assert ranks(course(LOSSES, steps=[0])).empty
    assert ranks(course(LOSSES).iloc[:0]).empty


def test_the_last_flip_of_each_two_rows_of_a_claim_by_hand() -> None:
    # kld - mse: + - + -; kld - cosine: - - - -; mse - cosine: - - - +.
    found = flips(TABLE, course(LOSSES, seeds=2))
    assert found.to_dict("records") == [
        {"claim": 0, "before": 20, "step": 30, "ahead": "kld", "changes": 3},
        {"claim": 3, "before": 20, "step": 30, "ahead": "cosine", "changes": 1},
    ]


def test_a_tie_is_no_flip_and_hides_none() -> None:
    # kld - mse: - 0 - -; kld - cosine: - 0 + +; mse - cosine: 0 0 + +.
    touching = course({"kld": [5.0, 4.0, 3.0, 2.0], "mse": [6.0, 4.0, 3.5, 2.5], "cosine": [6.0, 4.0, 2.5, 1.0]})
    assert flips(TABLE, touching).to_dict("records") == [
        {"claim": 2, "before": 0, "step": 20, "ahead": "cosine", "changes": 1}
    ]  # fmt: skip


def test_differences_are_of_seeds_that_both_rows_have() -> None:
    checks = course({"kld": [5.0, 4.0], "mse": [6.0, 3.0]}, 2, [0, 10])
    # Seed 1 of mse is not done: alone it would put kld behind at both checks.
    lame = checks[(checks["row"] != "mse") | (checks["seed"] == 0)].copy()
    lame.loc[(lame["row"] == "kld") & (lame["seed"] == 1), "lm_loss"] = 90.0
    assert flips(TABLE, lame).to_dict("records") == [
        {"claim": 0, "before": 0, "step": 10, "ahead": "mse", "changes": 1}
    ]  # fmt: skip


def test_a_table_without_checks_says_nothing_of_them(tmp_path: Path) -> None:
    requested, store = entries(TABLE, Profile(CELL, 2)), Store(tmp_path)
    for entry in requested:
        finish(store, entry, checked=False)
    found = assemble(TABLE, "tiny", {}, requested, store)
    assert found.checks.empty
    assert found.ranks.empty
    assert found.flips.empty
    stream = io.StringIO()
    terminal.print_report(found, Console(file=stream, width=100))
    paths = files.write_files(found, tmp_path / "files")
    for text in (stream.getvalue(), *(path.read_text() for path in paths)):
        assert "uring the retraining" not in text
        assert "flips" not in text
        assert "at each check" not in text


FLIP = (
    "kld and mse: the order of their LM loss flips at step 30 (the check before is at 20), kld is lower from there on; "
)


def test_terminal_markdown_and_page_say_when_the_order_is_that_of_the_end(found: Report, tmp_path: Path) -> None:
    stream = io.StringIO()
    terminal.print_report(found, Console(file=stream, width=80))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split() for line in text.splitlines() if line.strip().startswith("20 ")] == [["20", "−0.33", "3"]]
    assert FLIP + "it flips 3 times in all" in " ".join(text.split())
    _, markdown, _, page = (path.read_text() for path in files.write_files(found, tmp_path / "files"))
    assert "|     20 |           −0.33 |      3 |" in markdown
    assert f"- {FLIP}" in markdown
    assert '<th scope="row">20</th><td>−0.33</td><td>3</td>' in page
    assert f"<li>{FLIP}" in page
    assert page.count(f'aria-label="{html.escape(captions(found)["validation"])}"') == 1
    assert markdown.index("## Results") < markdown.index("## During the retraining") < markdown.index("## How to run")


def test_claims_whose_rows_keep_their_order_are_said_to(tmp_path: Path) -> None:
    requested, store = entries(TABLE, Profile(CELL, 1)), Store(tmp_path)
    for entry in requested:
        with store.claim(entry.cell, "cell") as node:
            kept = course({"x": [9.0, 8.0 + len(entry.row)]}, steps=[0, 10]).drop(columns=["row", "seed"])
            kept.to_csv(node.folder / "checks.csv", index=False)
            node.finish({"lm_loss": 1.0, "kd_loss_before": 1.0}, seconds=1.0)
    found = assemble(TABLE, "tiny", {}, requested, store)
    assert wording.flips(found) == ["the two rows of no claim change their order between the checks"]


def test_the_page_changes_when_a_check_does(tmp_path: Path) -> None:
    requested, store = entries(TABLE, Profile(CELL, 1)), Store(tmp_path)
    for entry in requested:
        finish(store, entry)
    page = files.write_files(assemble(TABLE, "tiny", {}, requested, store), tmp_path / "files")[-1]
    before = page.read_text()
    path = store.node(requested[0].cell, "cell").folder / "checks.csv"
    path.write_text(path.read_text().replace("3.6", "3.61"))
    files.write_files(assemble(TABLE, "tiny", {}, requested, store), tmp_path / "files")
    assert page.read_text() != before


def test_a_line_for_each_row_with_the_range_of_its_seeds_and_a_tick_at_each_validation(found: Report) -> None:
    (axes,) = figures.validation_curves(found).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["mse", "cosine", "kld"]
    assert list(lines["kld"].get_xdata()) == STEPS == list(axes.get_xticks())
    assert list(lines["kld"].get_ydata()) == pytest.approx([6.01, 4.01, 3.61, 3.01])
    assert len({line.get_color() for line in lines.values()}) == 3
    assert {text.get_text() for text in axes.texts} == set(lines)
    band = axes.collections[0].get_paths()[0].get_extents()  # that of mse, which ends highest
    assert (band.ymin, band.ymax) == pytest.approx((3.2, 5.02))
    assert axes.get_ylabel() == "validation LM loss (nats per token)"
    # The scale is that of the validations after the first, 3.0 to 5.02.
    low, high = axes.get_ylim()
    assert low < 3.0
    assert 5.02 < high < 6.0
