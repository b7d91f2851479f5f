"""Calibration scores of the teacher's layers: read from the store for tables that drop layers, and drawn."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lit_prune.config import Calibration, Cell, Corpus, Profile, Teacher
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import entries
from lit_prune.render import depth, files, svg
from lit_prune.render.catalog import captions
from lit_prune.report import Report, assemble
from lit_prune.report.layer_scores import read_layer_scores
from lit_prune.store import Node, Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
TABLE = Table(
    name="toy", question="Which?", source="nowhere", baseline="keep 2", reference_rows={},
    rows={f"keep {n}": {"prune.num_hidden_layers": n} for n in (2, 1)},
    seed_fields=("seed", "calibration.seed"),
    metrics=("lm_loss",),
)  # fmt: skip
NONE = np.nan
# Entry [l, n - 1]: the span of n blocks that begins with block l, of three.
INFLUENCE = np.array([[0.5, 0.6, 0.7], [0.1, 0.3, NONE], [0.2, NONE, NONE]])
ANGULAR = np.array([[0.30, 0.34, 0.50], [0.10, 0.20, NONE], [0.24, NONE, NONE]])


def measure(store: Store, seed: int, stage: str, done: bool = True) -> None:
    """Evidence of one calibration draw; that of a later seed is 0.2 more."""
    cell = dataclasses.replace(CELL, calibration=Calibration(seed=seed))
    found = {
        "distances": {
            "influence": INFLUENCE + 0.2 * seed, "angular_last": ANGULAR + 0.2 * seed, "angular_all": ANGULAR / 2
        },
        "removals": {"loss": np.array([4.5, 2.5, 2.0]) + 0.2 * seed, "whole": np.array(1.5)},
    }  # fmt: skip
    with store.claim(cell, stage) as node:
        save_file(found[stage], node.folder / f"{stage}.safetensors")
        if done:
            node.finish({})


def answer(store: Store, table: Table = TABLE, num_seeds: int = 2) -> Report:
    return assemble(table, "tiny", {}, entries(table, Profile(CELL, num_seeds)), store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for seed in (0, 1):
        measure(store, seed, "distances")
        measure(store, seed, "removals")
    return store


def test_every_draw_is_a_line_and_spans_are_their_mean(store: Store) -> None:
    found = answer(store).layer_scores
    np.testing.assert_allclose(found.influence, [[0.5, 0.1, 0.2], [0.7, 0.3, 0.4]])
    np.testing.assert_allclose(found.damage, [[3.0, 1.0, 0.5], [3.2, 1.2, 0.7]])
    np.testing.assert_allclose(found.spans, [[0.40, 0.44, 0.60], [0.20, 0.30, NONE], [0.34, NONE, NONE]])


def test_one_draw_that_several_cells_share_counts_once(store: Store) -> None:
    cells = [dataclasses.replace(CELL, seed=seed) for seed in range(3)]
    assert read_layer_scores(cells, store).influence.shape == (1, 3)


def test_whole_may_be_a_scalar_or_of_one_entry(store: Store) -> None:
    (folder, *_) = (store.root / "removals").iterdir()
    save_file({"loss": np.array([4.5, 2.5, 2.0]), "whole": np.array([1.5])}, folder / "removals.safetensors")
    Node(folder).finish({})
    assert answer(store).layer_scores.damage.shape == (2, 3)


def test_what_was_not_measured_or_not_finished_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert answer(store).layer_scores is None
    measure(store, 0, "distances", done=False)
    assert answer(store).layer_scores is None
    measure(store, 0, "removals")
    found = answer(store).layer_scores
    assert found.influence is None
    assert found.spans is None
    assert found.damage.tolist() == [[3.0, 1.0, 0.5]]


def test_a_table_that_drops_no_block_says_nothing_of_them(store: Store) -> None:
    widths = dataclasses.replace(TABLE, rows={f"keep {n}": {"prune.hidden_size": n} for n in (2, 1)})
    assert answer(store, widths).layer_scores is None
    listed = dataclasses.replace(
        TABLE, rows={str(layers): {"prune.drop_layers": layers} for layers in ((), (1,))}, baseline="()"
    )
    assert answer(store, listed).layer_scores is not None


def test_evidence_of_another_teacher_or_calibration_is_not_read(store: Store) -> None:
    other = dataclasses.replace(TABLE, base_overrides={"calibration.num_sequences": 7})
    assert answer(store, other).layer_scores is None


def test_the_page_has_a_bar_a_block_and_the_least_of_each_length_framed(store: Store, tmp_path: Path) -> None:
    page = files.write_files(answer(store), tmp_path / "files")[-1].read_text()
    assert page.count("<svg") == 2
    found = captions(answer(store))
    assert list(found) == ["layers", "spans"]
    for caption in found.values():
        assert page.count(f'aria-label="{html.escape(caption)}"') == 1
    assert "<image" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert not re.findall("|".join([svg.INK, svg.LINE, svg.DIM]), page)


def test_the_page_changes_when_the_evidence_does(store: Store, tmp_path: Path) -> None:
    page = files.write_files(answer(store), tmp_path / "files")[-1]
    before = page.read_text()
    (folder, *_) = (store.root / "removals").iterdir()
    save_file({"loss": np.array([4.5, 2.5, 9.0]), "whole": np.array(1.5)}, folder / "removals.safetensors")
    files.write_files(answer(store), tmp_path / "files")
    assert page.read_text() != before


def test_bars_are_means_over_draws_with_a_dot_for_each(store: Store) -> None:
    influence, damage = depth.layer_scores(answer(store).layer_scores).axes
    assert [bar.get_height() for bar in influence.patches] == pytest.approx([0.6, 0.2, 0.3])
    assert [bar.get_height() for bar in damage.patches] == pytest.approx([3.1, 1.1, 0.6])
    dots = sorted(influence.collections[0].get_offsets().tolist())
    np.testing.assert_allclose(dots, [[0, 0.5], [0, 0.7], [1, 0.1], [1, 0.3], [2, 0.2], [2, 0.4]])
    assert "nats per token" in damage.get_ylabel()
    assert damage.get_xlabel() == "layer (0 is the first)"


def test_one_draw_of_one_score_is_one_panel_without_dots(tmp_path: Path) -> None:
    store = Store(tmp_path)
    measure(store, 0, "removals")
    (axes,) = depth.layer_scores(answer(store, num_seeds=1).layer_scores).axes
    assert not axes.collections
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([3.0, 1.0, 0.5])


def test_the_heat_map_has_a_square_a_span_and_frames_the_least_of_each_length() -> None:
    axes, scale = depth.span_distances(ANGULAR).axes
    (squares,) = axes.collections
    # A line a length n, from the bottom, and a column a first block l.
    np.testing.assert_allclose(squares.get_array().filled(-1), [[0.30, 0.10, 0.24], [0.34, 0.20, -1], [0.50, -1, -1]])
    corners = [frame.get_xy() for frame in axes.patches]
    assert corners == [(0.5, 0.5), (0.5, 1.5), (-0.5, 2.5)]  # block 1 alone, 1 and 2, all three
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 1): "0.30", (1, 1): "0.10", (2, 1): "0.24", (0, 2): "0.34", (1, 2): "0.20", (0, 3): "0.50"}
    assert list(axes.get_yticks()) == [1, 2, 3]
    assert "arccos / π" in scale.get_ylabel()


def test_a_deep_teacher_has_no_numbers_in_its_squares() -> None:
    deep = np.where(np.add.outer(np.arange(40), np.arange(1, 41)) <= 40, 0.5, NONE)
    axes, _ = depth.span_distances(deep).axes
    assert not axes.texts
    assert len(axes.patches) == 40
    assert len(axes.get_xticks()) <= 16
