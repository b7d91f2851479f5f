"""The rows of method_ablation: equal sizes, retraining, sections."""

from __future__ import annotations

import dataclasses

import pytest

from lit_prune.config.profiles import load_profile
from lit_prune.config.prune import method_class, method_names
from lit_prune.experiments.method_ablation import DEPTH, OWN, TABLE
from lit_prune.models.shape import meta_model
from lit_prune.pipeline.expand import entries
from lit_prune.pruning.shapes import config_of_student, teacher_config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return TABLE.at(load_profile("quick", TABLE.name), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def cells(table):
    found = entries(table, load_profile("quick", TABLE.name), num_seeds=1)
    return {entry.row: entry.cell for entry in found if not entry.reference}


def inside(config):
    return sum(p.numel() for name, p in meta_model(config).named_parameters() if ".layers." in name)


def test_layers_have_the_parameters_of_their_section(table, cells):
    whole = inside(teacher_config(next(iter(cells.values()))))
    for row, cell in cells.items():
        share = inside(config_of_student(cell)) / whole
        kept = 1 if cell.prune.sparse else 0.75 if row.endswith("25 %") else 0.5
        assert share == pytest.approx(kept, abs=0.004), row
        assert table.sections[row].startswith("25 %") == row.endswith("25 %")


def test_every_method_has_a_row_but_random_weights_and_lottery_tickets(cells):
    assert {cell.prune.method for cell in cells.values()} == set(method_names()) - {"edge_popup", "imp", "supermask"}
    # Six layers have no quarter.
    assert not {f"{row}, 25 %" for row in DEPTH} & set(cells)


def test_rows_are_retrained_alike_but_for_own_recovery(cells):
    for row, cell in cells.items():
        if OWN.format("") not in f", {row}":
            assert cell.distill == cells["Minitron"].distill
            continue
        plain = cells[row.removesuffix(", own recovery")]
        published = method_class(cell.prune.method).retraining
        assert dataclasses.replace(cell, distill=plain.distill) == plain
        assert cell.distill != plain.distill
        assert (cell.distill.ce_weight, cell.distill.kd_weight) == (
            published["distill.ce_weight"], published["distill.kd_weight"],
        )  # fmt: skip
        assert (cell.distill.max_steps, cell.distill.optimizer) == (plain.distill.max_steps, plain.distill.optimizer)


def test_no_speed_is_measured_of_zeros(cells):
    for cell in cells.values():
        assert (cell.evaluation.throughput is None) == cell.prune.sparse
