"""Everything random in a treatment is drawn again for each seed."""

from __future__ import annotations

import dataclasses

import pytest

from lit_prune.config.profiles import load_profile
from lit_prune.pipeline.expand import entries
from lit_prune.registry import table_of

CALIBRATED = (
    "aggregation", "axes", "correction", "depth", "iterative", "oneshot", "phase", "residual", "search", "strategy",
    "unstructured", "method", "supermask", "ticket",
)  # fmt: skip


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_seed_draws_calibration_and_the_fine_tuning_of_the_teacher(name, tmp_path):
    quick = dataclasses.replace(load_profile("quick"), seeds=2, calibration_seeds=2)
    found = entries(table_of(f"{name}_ablation").at(quick, tmp_path), quick)
    compared = [entry for entry in found if not entry.reference]
    assert {entry.seed for entry in compared} == {0, 1}
    assert all(entry.cell.calibration.seed == entry.cell.seed == entry.seed for entry in compared)
    finetuned = [entry for entry in compared if entry.cell.teacher.finetune is not None]
    assert bool(finetuned) == (name in ("correction", "phase"))
    assert all(entry.cell.teacher.finetune.seed == entry.seed for entry in finetuned)


@pytest.mark.parametrize("profile", ["quick", "laptop", "h200"])
def test_profiles_have_five_seeds_and_twenty_draws(profile):
    found = load_profile(profile)
    assert (found.seeds, found.calibration_seeds) == (5, 20)
