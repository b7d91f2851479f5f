"""Tables whose rows compare nothing are refused, and rows that differ only in unused settings have one outcome."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

from lit_prune.cli.table import main
from lit_prune.config import Cell, ConfigError, Lora, SearchSpace
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.models.shape import parameter_counter, shape_of
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.outcomes import check_rows, outcome
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.pruning.shapes import pruned_configs, teacher_config
from lit_prune.pruning.target import target
from lit_prune.store import Store

SHALLOW = {"teacher.model": None, "teacher.pretraining.num_hidden_layers": 3}
FULL = {"prune.hidden_size": 192, "prune.intermediate_size": 512, "prune.num_attention_heads": 6}
"""The sizes of the teacher that ships."""
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}


def table_of(name: str) -> Any:
    return importlib.import_module(f"lit_prune.experiments.{name}_ablation").TABLE


def refused(name: str, tmp_path: Any, settings: dict[str, Any], also: Any = (), **profile: Any) -> str:
    quick = dataclasses.replace(load_profile("quick"), **profile)

    def ask() -> None:
        table = table_of(name).at(quick, tmp_path, settings)
        check_rows(table, "quick", entries(table, quick, settings=settings, add_rows=also))

    with pytest.raises(ConfigError) as caught:
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    message = refused(name, tmp_path, settings, also)
    assert message.startswith(f"{name}_ablation at quick: ")
    assert all(repr(row) in message for row in rows)


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
    message = refused(name, tmp_path, settings)
    assert message.startswith(f"{field}: ")
    assert f"{name}_ablation" in message


def test_a_search_with_one_shape_is_refused(tmp_path):
    only = SearchSpace(num_hidden_layers=(1.0,), intermediate_size=(0.5,))
    assert refused("search", tmp_path, {}, search_space=only).startswith("search_space: must have at least 2 shapes")


def test_both_texts_of_the_phases_may_be_set(tmp_path):
    quick, table = load_profile("quick"), table_of("phase")
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
    asked = load_profile(profile)
    assert dict(asked.new_text)["corpus.path"] != asked.cell.corpus.path


def test_a_field_of_the_new_text_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("new_text: {corpus: {pth: x}}\n")
    with pytest.raises(ConfigError, match=r"corpus\.path"):
        load_profile(str(path))


def test_the_command_refuses_before_any_compute(tmp_path, capsys):
    words = [
        "--dry-run",
        "--set",
        "prune.num_attention_heads=null",
        "--store",
        str(tmp_path / "store"),
        "--wandb",
        "disabled",
    ]
    assert main(table_of("residual"), words) == 2
    assert "residual_ablation" in capsys.readouterr().err
    assert not (tmp_path / "store" / "tokens").exists()


# Outcomes


@pytest.mark.parametrize(
    ("changes", "others", "same"),
    [
        ({"prune.num_attention_heads": 4}, {"prune.num_attention_heads": 0.667}, True),
        ({"prune.num_attention_heads": 4}, {"prune.num_attention_heads": 2}, False),
        (
            {"prune.num_parameters": 0.62, "prune.num_hidden_layers": "auto", **WHOLE},
            {"prune.num_hidden_layers": 3, **WHOLE},
            True,
        ),
        ({"prune.layer_selection": "contiguous", "prune.num_hidden_layers": 5}, {"prune.num_hidden_layers": 5}, True),
        ({"prune.layer_selection": "contiguous", "prune.num_hidden_layers": 4}, {"prune.num_hidden_layers": 4}, False),
        ({"prune.layer_selection": "last", "prune.layer_criterion": "random"}, {}, True),
        ({"prune.width_criterion": "random"}, {}, False),
        (
            {"prune.width_criterion": "taylor", "prune.seq_aggregation": "var"},
            {"prune.width_criterion": "taylor"},
            True,
        ),
        ({"prune.seq_aggregation": "var"}, {}, False),
        ({"prune.init": "random", "prune.seq_aggregation": "var"}, {"prune.init": "random"}, True),
        ({"prune.head_merging": "paper", "prune.num_attention_heads": None}, {"prune.num_attention_heads": None}, True),
        ({"prune.head_merging": "paper"}, {}, False),
        ({"distill.scale_by_temperature_squared": True}, {}, True),
        (
            {"distill.scale_by_temperature_squared": True, "distill.temperature": 2.0},
            {"distill.temperature": 2.0},
            False,
        ),
        ({"distill.top_k": 2048}, {}, True),
        ({"distill.top_k": 2047}, {}, False),
        ({"distill.max_steps": 0, "distill.batch_size": 7}, {"distill.max_steps": 0}, True),
        ({"distill.batch_size": 7}, {}, False),
        ({"distill.lora": Lora()}, {}, False),
        ({"seed": 1}, {}, False),
        (
            {"distill.alpha": 1.0, "distill.match_layer_output": ["last:last"]},
            {"distill.alpha": 1.0, "distill.match_layer_output": ["5:5"]},
            True,
        ),
        (
            {"distill.alpha": 1.0, "distill.match_layer_output": ["4:4"]},
            {"distill.alpha": 1.0, "distill.match_mlp_input": ["5:5"]},
            False,
        ),
        (
            {"parent.prune.num_hidden_layers": 5, "parent.prune.layer_selection": "contiguous"},
            {"parent.prune.num_hidden_layers": 5},
            True,
        ),
        ({"parent.prune.num_hidden_layers": 5}, {"parent.prune.num_hidden_layers": 4}, False),
    ],
)
def test_settings_without_effect_leave_the_outcome(changes, others, same):
    """The teacher that ships: 6 layers, 6 heads in 2 groups, 2048 tokens."""
    assert (outcome(override(Cell(), changes)) == outcome(override(Cell(), others))) is same


@pytest.mark.parametrize(
    ("share", "hidden", "kv_heads", "heads"),
    # Llama wants the heads to divide the hidden channels: of 8 heads in groups of 2, 2, 4 and 8 divide 256.
    [(0.75, 256, 2, 4), (0.9, 256, 2, 8), (0.5, 256, 2, 4), (0.1, 256, 2, 2), (0.75, 240, 2, 6), (0.7, 256, 8, 4)],
)
def test_a_share_of_heads_becomes_the_nearest_number_the_family_allows(share, hidden, kv_heads, heads):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=hidden, num_attention_heads=8, num_key_value_heads=kv_heads, head_dim=32, num_hidden_layers=2,
        intermediate_size=64, vocab_size=64,
    )  # fmt: skip
    student = override(Cell(), {**WHOLE, "prune.num_attention_heads": share}).prune
    assert target(student, config).num_attention_heads == heads


# Sizes set for all rows


AUTO = {"prune.hidden_size": "auto", "prune.intermediate_size": "auto", "prune.num_attention_heads": "auto"}


@pytest.mark.parametrize(
    ("name", "share"),
    [("aggregation", 0.5), ("loss", 0.5), ("temperature", 0.5), ("topk", 0.5), ("residual", 0.5), ("strategy", 0.4)],
)
def test_a_number_of_parameters_may_be_set_and_the_teacher_stays_whole(name, share, tmp_path):
    quick, settings = load_profile("quick"), {"prune.num_parameters": share, **AUTO}
    table = table_of(name).at(quick, tmp_path, settings)
    asked = entries(table, quick, settings=settings, num_seeds=1)
    check_rows(table, "quick", asked)
    found = {entry.row: entry.cell for entry in asked}
    config = teacher_config(quick.cell)
    count = parameter_counter(config)
    whole = count(shape_of(config))
    for row, cell in found.items():
        *_, (_, pruned) = pruned_configs(cell)
        parameters = count(target(cell.prune, pruned))
        expected = whole if row == "teacher" else share * whole
        assert parameters == pytest.approx(expected, rel=0.02), row


@pytest.mark.parametrize(
    ("changes", "chained"),
    [
        ({}, {"prune.hidden_size": 0.75, "prune.intermediate_size": 0.5625}),
        # 0.6 of 192 channels is 116, in whole heads; 0.9 of the middle model's 126 would be 112.
        ({"prune.hidden_size": 0.6}, {"prune.hidden_size": 116, "prune.intermediate_size": 192}),
        (
            {"prune.hidden_size": 96, "prune.num_attention_heads": 2},
            {"prune.hidden_size": 96, "prune.num_attention_heads": 2},
        ),
    ],
)
def test_the_chain_ends_at_the_shape_of_the_others(changes, chained, tmp_path):
    quick, table = load_profile("quick"), table_of("strategy")
    table = table.at(quick, tmp_path, changes)
    found = {entry.row: entry for entry in entries(table, quick, settings=changes, num_seeds=1)}
    assert {path: found["chained + KD"].changes[path] for path in chained} == chained
    shapes = []
    for row in ("pruned + KD", "chained + KD"):
        *_, (cell, config) = pruned_configs(found[row].cell)
        shapes.append(target(cell.prune, config))
    assert shapes[0] == shapes[1]


def test_a_student_larger_than_the_middle_model_is_refused(tmp_path):
    assert refused("strategy", tmp_path, {"prune.hidden_size": 0.7}).startswith(
        "prune.hidden_size: must keep at most 126"
    )


def test_strategy_says_what_it_keeps(tmp_path):
    """Half of 6 heads in 2 groups would be one and a half heads a group."""
    table = table_of("strategy").at(load_profile("quick"), tmp_path)
    assert "6 of 6 layers, 96 of 192 channels, 192 of 512 neurons, 4 of 6 heads" in table.caveats[0]


def test_an_error_names_the_row_it_comes_from(tmp_path):
    table = dataclasses.replace(table_of("loss"), reference_rows={"odd": {"distill.stpes": 0}})
    with pytest.raises(ConfigError, match=r"'distill\.stpes'.*'odd'"):
        entries(table, load_profile("quick"))
    table = dataclasses.replace(table_of("loss"), reference_rows={"odd": {"prune.num_parameters": 0.5}})
    with pytest.raises(ConfigError, match=r"^prune\.num_parameters: .*'odd'"):
        check_rows(table, "quick", entries(table, load_profile("quick")))


def test_a_text_that_one_row_lacks_is_refused_by_row(tmp_path):
    (tmp_path / "text.txt").write_text("A document.\n" * 9)
    missing = {"corpus.path": str(tmp_path / "nowhere.txt"), "distill.max_steps": 0}
    table = dataclasses.replace(table_of("loss"), reference_rows={"odd": missing})
    question = TableRequest(set=(f"corpus.path={tmp_path / 'text.txt'}",))
    with pytest.raises(ConfigError, match=r"^corpus\.path: .*'odd'"):
        requested_entries(table, question, Store(tmp_path / "store"))


def test_more_likely_tokens_than_the_vocabulary_has_are_refused_by_row(tmp_path):
    message = refused("topk", tmp_path, {"teacher.model": None, "teacher.pretraining.vocab_size": 512})
    assert message.startswith("distill.top_k: ")
    assert "'top 1000'" in message


def test_turns_without_a_second_axis_are_refused(tmp_path):
    cell = override(load_profile("quick").cell, {"prune.intermediate_size": None, "prune.num_attention_heads": None})
    assert refused("oneshot", tmp_path, {}, cell=cell).startswith("student: must prune neurons or heads")


def test_an_error_of_all_rows_names_none(tmp_path):
    assert "(row" not in refused("loss", tmp_path, {"prune.num_parameters": 0.5})
