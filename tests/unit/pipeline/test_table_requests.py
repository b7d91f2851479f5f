"""Requests for tables that compare nothing, or are impossible, are refused by table, row and field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from refusals import check_refusal, refuses

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, SearchSpace
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.outcomes import check_rows
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.registry import table_of
from lit_prune.store import Store

SHALLOW = {"teacher.model": None, "teacher.pretraining.num_hidden_layers": 3}
FULL = {"prune.hidden_size": 192, "prune.intermediate_size": 512, "prune.num_attention_heads": 6}
"""The sizes of the teacher that ships."""
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}


def request(name: str, tmp_path: Any, settings: dict[str, Any], also: Any = (), **profile: Any) -> None:
    """Expand the table `name`_ablation at the profile quick, and check its rows."""
    quick = dataclasses.replace(load_profile("quick"), **profile)
    table = table_of(f"{name}_ablation").at(quick, tmp_path, settings)
    check_rows(table, "quick", entries(table, quick, settings=settings, add_rows=also))


@pytest.mark.parametrize(
    ("name", "settings", "also", "rows"),
    [
        ("residual", {"prune.num_attention_heads": None}, {}, ["off"]),
        ("loss", FULL, {}, ["L_CLM + L_logits(MSE)"]),
        ("aggregation", FULL, {}, ["(L2, mean), retrained"]),
        ("aggregation", {"prune.width_criterion": "magnitude"}, {}, ["(L2, L2)", "(L2, mean)"]),
        ("topk", {}, {"top_k": 2048}, ["all tokens", "all tokens, top_k=2048"]),
        (
            "temperature",
            {},
            {"scale_by_temperature_squared": True},
            ["tau = 1", "tau = 1, scale_by_temperature_squared=true"],
        ),
        ("depth", {**SHALLOW, "teacher.pretraining.num_hidden_layers": 4}, {}, ["5/6, PPL", "2/3, PPL"]),
        ("axes", SHALLOW, {}, ["depth + width", "width"]),
    ],
)
def test_a_table_that_compares_nothing_is_refused_by_name_rows_and_profile(name, settings, also, rows, tmp_path):
    with refuses("", f"{name}_ablation", "quick", *map(repr, rows)):
        request(name, tmp_path, settings, also)


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("correction", {"corpus.path": "python"}, "corpus.path"),
        ("correction", {"corpus.path": "docstrings"}, "corpus.path"),
        ("correction", {**SHALLOW, "teacher.pretraining.corpus.path": "readmes"}, "corpus.path"),
        ("phase", {"corpus.path": "readmes"}, "corpus.path"),
        ("phase", {"parent.corpus.path": "readmes"}, "corpus.path"),
        ("aggregation", {"corpus.path": "readmes"}, "corpus.path"),
        ("phase", {"distill.max_steps": 2}, "distill.max_steps"),
        ("oneshot", {"distill.max_steps": 1}, "distill.max_steps"),
        ("oneshot", {**SHALLOW, "teacher.pretraining.num_hidden_layers": 2}, "teacher"),
    ],
)
def test_a_table_without_its_treatment_is_refused_by_the_field(name, settings, field, tmp_path):
    with refuses(field, f"{name}_ablation"):
        request(name, tmp_path, settings)


def test_a_search_with_one_shape_is_refused(tmp_path):
    only = SearchSpace(num_hidden_layers=(1.0,), intermediate_size=(0.5,))
    with refuses("search_space", 2):
        request("search", tmp_path, {}, search_space=only)


def test_both_texts_of_the_phases_may_be_set(tmp_path):
    quick, table = load_profile("quick"), table_of("phase_ablation")
    settings = {"corpus.path": "second.txt", "parent.corpus.path": "first.txt", "prune.hidden_size": 0.5}
    table = table.at(quick, tmp_path, settings)
    found = {entry.row: entry.cell for entry in entries(table, quick, settings=settings, num_seeds=1)}
    assert {cell.corpus.path for cell in found.values()} == {"second.txt"}
    sources = {row: dict(cell.parent or ()) for row, cell in found.items()}
    assert sources["early, phase 2"]["corpus.path"] == "first.txt"
    assert sources["early, phase 2"]["prune.hidden_size"] == 0.5
    assert not sources["late, phase 2"]


@pytest.mark.parametrize("profile", ["quick", "laptop", "h200", "paper"])
def test_the_new_text_of_a_profile_is_another_than_its_own(profile):
    requested = load_profile(profile)
    assert dict(requested.new_text)["corpus.path"] != requested.cell.corpus.path


def test_a_field_of_the_new_text_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("new_text: {corpus: {pth: x}}\n")
    with refuses("corpus.pth", "'corpus.path'"):
        load_profile(str(path))


def test_the_command_refuses_before_any_compute(tmp_path, capsys):
    words = ["--dry-run", "--set", "prune.num_attention_heads=null", "--wandb", "disabled"]
    assert main(table_of("residual_ablation"), [*words, "--store", str(tmp_path / "store")]) == 2
    check_refusal(capsys.readouterr().err, "", "residual_ablation")
    assert not (tmp_path / "store" / "tokens").exists()


def test_a_student_larger_than_the_middle_model_is_refused(tmp_path):
    with refuses("prune.hidden_size", 126):
        request("strategy", tmp_path, {"prune.hidden_size": 0.7})


def test_an_error_names_the_row_it_comes_from(tmp_path):
    table = dataclasses.replace(table_of("loss_ablation"), reference_rows={"odd": {"distill.stpes": 0}})
    with refuses("distill.stpes", "'odd'"):
        entries(table, load_profile("quick"))
    table = dataclasses.replace(table_of("loss_ablation"), reference_rows={"odd": {"prune.num_parameters": 0.5}})
    with refuses("prune.num_parameters", "'odd'"):
        check_rows(table, "quick", entries(table, load_profile("quick")))


def test_a_text_that_one_row_lacks_is_refused_by_row(tmp_path):
    (tmp_path / "text.txt").write_text("A document.\n" * 9)
    missing = {"corpus.path": str(tmp_path / "nowhere.txt"), "distill.max_steps": 0}
    table = dataclasses.replace(table_of("loss_ablation"), reference_rows={"odd": missing})
    question = TableRequest(set=(f"corpus.path={tmp_path / 'text.txt'}",))
    with refuses("corpus.path", "'odd'"):
        requested_entries(table, question, Store(tmp_path / "store"))


def test_more_likely_tokens_than_the_vocabulary_has_are_refused_by_row(tmp_path):
    with refuses("distill.top_k", "'top 1000'"):
        request("topk", tmp_path, {"teacher.model": None, "teacher.pretraining.vocab_size": 512})


def test_turns_without_a_second_axis_are_refused(tmp_path):
    cell = override(load_profile("quick").cell, {"prune.intermediate_size": None, "prune.num_attention_heads": None})
    with refuses("prune", "neurons", "heads"):
        request("oneshot", tmp_path, {}, cell=cell)


def test_an_error_of_all_rows_names_none(tmp_path):
    with pytest.raises(ConfigError) as caught:
        request("loss", tmp_path, {"prune.num_parameters": 0.5})
    assert caught.value.field == "prune.num_parameters"
    assert "(row" not in caught.value.problem
