"""The cells of a table: seeds, settings, references, and added or filtered rows."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
from refusals import refuses
from toy import LOSSES, table

from lit_prune.config import Cell, Profile
from lit_prune.config.overrides import fields_of, override, parents_of
from lit_prune.config.profiles import load_profile
from lit_prune.pipeline.expand import entries
from lit_prune.store.address import key

PROFILE = Profile(Cell(), seeds=2)
LOSSES_SWEPT = list(dict.fromkeys(changes["distill.logit_loss"] for changes in table().rows.values()))


def rows(found) -> list[tuple[str, int]]:
    return [(entry.row, entry.seed) for entry in found]


def test_every_row_has_every_seed_and_the_cell_of_its_point():
    found = entries(table(), PROFILE)
    assert rows(found) == [(loss, seed) for loss in LOSSES for seed in (0, 1)]
    for entry in found:
        assert entry.cell == override(Cell(), {"distill.logit_loss": entry.row, "seed": entry.seed})
        assert entry.changes == {"distill.logit_loss": entry.row, "seed": entry.seed}
        assert entry.key == key(entry.cell)
        assert not entry.reference


def test_the_number_of_seeds_can_be_asked_for():
    assert rows(entries(table(), PROFILE, num_seeds=1)) == [(loss, 0) for loss in LOSSES]


def test_an_added_row_is_named_after_the_baseline_and_its_change():
    named = table(rows={"KLD": {"distill.logit_loss": "kld"}}, paper={}, claims=(), baseline="KLD")
    found = entries(named, PROFILE, num_seeds=1, add_rows=[("logit_loss", "reverse_kld")])
    assert found[-1].row == "KLD, logit_loss=reverse_kld"


def test_rows_that_are_not_retrained_take_the_profiles_draws():
    rows_of = {"before": {"distill.max_steps": 0}, "after": {}}
    zero_shot = table(rows=rows_of, baseline="before", paper={}, claims=())
    profile = Profile(Cell(), seeds=2, calibration_seeds=3)
    assert rows(entries(zero_shot, profile)) == [
        ("before", 0),
        ("before", 1),
        ("before", 2),
        ("after", 0),
        ("after", 1),
    ]
    assert rows(entries(zero_shot, profile, num_seeds=1)) == [("before", 0), ("after", 0)]


def test_a_table_that_depends_on_the_profile_is_made_at_it(tmp_path):
    def doubled(table, profile, store):
        steps = (profile.seeds, profile.seeds + 1)
        return dataclasses.replace(table, rows={str(n): {"distill.max_steps": n} for n in steps}, baseline="2")

    open_table = table(rows={}, baseline="", paper={}, claims=(), build_for_profile=doubled)
    assert [entry.row for entry in entries(open_table.at(PROFILE, tmp_path), PROFILE, num_seeds=1)] == ["2", "3"]
    assert table().at(PROFILE, tmp_path).name == "toy"


def test_references_come_last_once_as_the_baseline_with_their_changes():
    found = entries(table(reference_rows={"as it is": {"distill.max_steps": 0}}), PROFILE)
    assert rows(found)[-1] == ("as it is", 0)
    assert [entry.reference for entry in found] == [False] * 6 + [True]
    assert found[-1].cell == override(Cell(), {"distill.max_steps": 0, "distill.logit_loss": "kld"})


def test_settings_change_every_cell():
    requested = table(reference_rows={"as it is": {"distill.max_steps": 0}})
    found = entries(requested, PROFILE, settings={"distill.seq_len": 64})
    assert {entry.cell.distill.seq_len for entry in found} == {64}


def test_a_seed_sets_every_field_that_is_seeded():
    requested = table(seed_fields=("seed", "calibration.seed"), reference_rows={"as it is": {"distill.max_steps": 0}})
    found = entries(requested, PROFILE)
    assert rows(found)[:2] == [("kld", 0), ("kld", 1)]
    assert [(entry.cell.seed, entry.cell.calibration.seed) for entry in found] == [(0, 0), (1, 1)] * 3 + [(0, 0)]
    only_the_draw = entries(table(seed_fields=("calibration.seed",)), PROFILE, num_seeds=3)
    assert [(e.seed, e.cell.seed, e.cell.calibration.seed) for e in only_the_draw[:3]] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
    ]


def test_a_seed_is_left_out_where_a_row_lacks_the_section():
    rows_of = {
        "none": {"teacher.finetune": None}, "corrected": {},
        "parent": {"parent.teacher.finetune": None, "parent.distill.max_steps": 3},
    }  # fmt: skip
    requested = table(
        rows=rows_of, baseline="corrected", paper={}, claims=(), base_overrides={"teacher.finetune.max_steps": 7},
        seed_fields=("seed", "teacher.finetune.seed"),
        reference_rows={
            "as it was": {"teacher.finetune": None, "distill.max_steps": 0}, "as it is": {"distill.max_steps": 0},
        },
    )  # fmt: skip
    found = entries(requested, PROFILE)
    corrections = [entry.cell.teacher.finetune for entry in found]
    assert [recipe and (recipe.max_steps, recipe.seed) for recipe in corrections] == [
        None, None, (7, 0), (7, 1), (7, 0), (7, 1), None, (7, 0)
    ]  # fmt: skip
    assert [source.teacher.finetune for entry in found for source in parents_of(entry.cell)] == [None, None]
    assert [entry.cell.seed for entry in found] == [0, 1] * 3 + [0, 0]


def test_references_have_seed_0_also_where_the_profile_has_another():
    profile = Profile(override(Cell(), {"seed": 7, "calibration.seed": 7}), seeds=1)
    requested = table(seed_fields=("seed", "calibration.seed"), reference_rows={"as it is": {"distill.max_steps": 0}})
    reference = entries(requested, profile)[-1].cell
    assert (reference.seed, reference.calibration.seed) == (0, 0)


def test_an_added_row_that_only_a_seed_tells_apart_is_refused():
    with refuses("", "'kld'", "'kld, calibration.seed=3'", "seed 0"):
        entries(table(seed_fields=("seed", "calibration.seed")), PROFILE, add_rows={"calibration.seed": 3})


def test_what_a_table_changes_is_in_every_cell_under_the_grid_and_the_settings():
    requested = table(
        rows=table().rows | {"cosine": {"distill.logit_loss": "cosine", "distill.seq_len": 32}},
        base_overrides={"distill.seq_len": 64, "evaluation.num_validations": 8},
        reference_rows={"as it is": {"distill.max_steps": 0}},
    )
    profile = Profile(override(Cell(), {"distill.seq_len": 128, "distill.batch_size": 3}), seeds=1)
    found = entries(requested, profile)
    assert [entry.cell.distill.seq_len for entry in found] == [64, 64, 32, 64]
    assert {(entry.cell.evaluation.num_validations, entry.cell.distill.batch_size) for entry in found} == {(8, 3)}
    assert "evaluation.num_validations" not in found[0].changes
    set_away = entries(requested, profile, settings={"evaluation.num_validations": 2})
    assert {entry.cell.evaluation.num_validations for entry in set_away} == {2}
    assert requested.base_overrides == {"distill.seq_len": 64, "evaluation.num_validations": 8}


def test_a_table_that_changes_an_unknown_field_is_refused():
    wrong = {"evaluation.num_validaions": 8}
    with refuses("evaluation.num_validaions", "'evaluation.num_validations'"):
        entries(table(base_overrides=wrong), PROFILE)


@pytest.mark.parametrize("path", ["distill.logit_loss", "seed", "calibration.seed"])
def test_a_setting_on_a_swept_field_is_refused(path):
    with refuses("", f"--set {path}", "toy", "--filter", "--add-row"):
        entries(table(seed_fields=("seed", "calibration.seed")), PROFILE, settings={path: 0})


def test_a_setting_of_an_unknown_field_is_refused():
    with refuses("distill.stpes", "'distill.max_steps'"):
        entries(table(), PROFILE, settings={"distill.stpes": 3})


@pytest.mark.parametrize(
    "twins",
    [
        table(rows=table().rows | {"again": {"distill.logit_loss": "kld"}}),
        table(reference_rows={"the same": {}}),
    ],
    ids=["row", "reference"],
)
def test_two_rows_with_the_same_cell_are_refused(twins):
    with refuses("", "'kld'"):
        entries(twins, PROFILE)


def test_a_value_that_is_the_same_after_conversion_is_a_twin():
    whole = table(
        rows={"kld 1": {"distill.ce_weight": 1}, "kld 1.0": {"distill.ce_weight": 1.0}},
        baseline="kld 1",
        paper={},
        claims=(),
    )
    with refuses("", "'kld 1'", "'kld 1.0'", "seed 0"):
        entries(whole, PROFILE)


# --add-row and --filter


def test_also_adds_a_row_that_is_the_baseline_with_one_change():
    found = entries(table(), PROFILE, add_rows={"logit_loss": "mse_logits"})
    assert rows(found)[6:] == [("kld, logit_loss=mse_logits", 0), ("kld, logit_loss=mse_logits", 1)]
    assert found[6].cell == override(Cell(), {"distill.logit_loss": "mse_logits"})


def test_also_takes_a_field_that_no_row_changes():
    found = entries(table(), PROFILE, add_rows={"temperature": 2.0, "distill.max_steps": 7})
    added = ("kld, temperature=2.0", "kld, distill.max_steps=7")
    assert rows(found)[6:] == [(row, seed) for row in added for seed in (0, 1)]
    assert found[6].cell == override(Cell(), {"distill.temperature": 2.0})
    assert [entry.cell.distill.temperature for entry in found if entry.row == "kld"] == [1.0, 1.0]


def test_also_may_give_one_field_several_values():
    found = entries(table(), PROFILE, num_seeds=1, add_rows=[("temperature", 2.0), ("temperature", 3.0)])
    assert rows(found)[3:] == [("kld, temperature=2.0", 0), ("kld, temperature=3.0", 0)]
    assert [entry.cell.distill.temperature for entry in found[3:]] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "value"), [("logit_loss", "mse"), ("distill.logit_loss", "kld"), ("ce_weight", 0), ("seed", 1)]
)
def test_also_what_is_there_already_is_refused(name, value):
    with refuses("", f"'kld, {name}={value}'"):
        entries(table(), PROFILE, add_rows={name: value})


@pytest.mark.parametrize("name", ["logit_loss", "distill.logit_loss"])
def test_only_keeps_the_points_with_that_value(name):
    assert rows(entries(table(), PROFILE, filters={name: "mse"})) == [("mse", 0), ("mse", 1)]


def test_only_with_several_values_keeps_any_of_them_and_with_several_fields_all_of_them():
    only = [("logit_loss", "kld"), ("logit_loss", "mse"), ("seed", 1)]
    assert rows(entries(table(), PROFILE, filters=only)) == [("kld", 1), ("mse", 1)]


def test_only_applies_to_added_rows_too():
    found = entries(table(), PROFILE, add_rows={"logit_loss": "mse_logits"}, filters={"logit_loss": "mse_logits"})
    assert rows(found) == [("kld, logit_loss=mse_logits", 0), ("kld, logit_loss=mse_logits", 1)]


@pytest.mark.parametrize(
    ("only", "field", "values"),
    [
        ({"logit_loss": "kdl"}, "distill.logit_loss", [", ".join(LOSSES_SWEPT), "kdl"]),
        ({"seed": 2}, "seed", ["0, 1", 2]),
        ({"temperature": 1.0}, "distill.temperature", [", ".join(table().swept)]),
        ({"prune.init_from": None}, "prune.init_from", [", ".join(table().swept)]),
    ],
)
def test_only_what_no_row_has_is_refused_with_the_values_there_are(only, field, values):
    with refuses("", f"--filter {field}", *values):
        entries(table(), PROFILE, filters=only)


@pytest.mark.parametrize("request_", ["add_rows", "filters"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "'distill.temperature'"),
        ("logit_los", "'distill.logit_loss'"),
        ("", "lit-prune fields"),
    ],
)
def test_an_unknown_short_name_is_refused(request_, name, hint):
    with refuses(name, hint):
        entries(table(), PROFILE, **{request_: {name: 1}})


def test_an_ambiguous_short_name_is_refused_with_what_it_may_stand_for():
    ours = sorted(path for path in fields_of(Cell) if path.endswith(".seq_len"))
    assert len(ours) > 1
    with refuses("seq_len", ", ".join(ours)):
        entries(table(), PROFILE, add_rows={"seq_len": 3, "batch_size": 3})


def test_a_swept_field_wins_over_others_of_its_short_name():
    swept = table(
        rows={str(n): {"distill.max_steps": n} for n in (1, 2)}, baseline="1", paper={}, claims=(),
    )  # fmt: skip
    assert rows(entries(swept, PROFILE, filters={"max_steps": 2})) == [("2", 0), ("2", 1)]


@pytest.mark.parametrize("name", ["strategy_ablation", "oneshot_ablation"])
def test_steps_that_follow_the_profile_may_be_set(name, tmp_path):
    table, quick = importlib.import_module(f"lit_prune.experiments.{name}").TABLE, load_profile("quick")

    def steps(profile: Profile, **how: Any) -> list[int]:
        found = entries(table.at(profile, tmp_path), quick, num_seeds=1, **how)
        return [c.distill.max_steps for entry in found for c in (entry.cell, *parents_of(entry.cell))]

    twice = dataclasses.replace(quick, cell=override(quick.cell, {"distill.max_steps": 100}))
    assert steps(twice, settings={"distill.max_steps": 100}) == pytest.approx([2 * n for n in steps(quick)], abs=1)
