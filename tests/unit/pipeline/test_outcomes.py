"""Rows that differ only in settings without effect have one outcome; sizes set for all rows."""

from __future__ import annotations

import pytest

from lit_prune.config import Cell, Lora
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.models.shape import parameter_counter, shape_of
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.outcomes import check_rows, outcome
from lit_prune.pruning.shapes import pruned_configs, teacher_config
from lit_prune.pruning.target import target
from lit_prune.registry import table_of

SHALLOW = {"teacher.model": None, "teacher.pretraining.num_hidden_layers": 3}
FULL = {"prune.hidden_size": 192, "prune.intermediate_size": 512, "prune.num_attention_heads": 6}
"""The sizes of the teacher that ships."""
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}


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
    table = table_of(f"{name}_ablation").at(quick, tmp_path, settings)
    requested = entries(table, quick, settings=settings, num_seeds=1)
    check_rows(table, "quick", requested)
    found = {entry.row: entry.cell for entry in requested}
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
    quick, table = load_profile("quick"), table_of("strategy_ablation")
    table = table.at(quick, tmp_path, changes)
    found = {entry.row: entry for entry in entries(table, quick, settings=changes, num_seeds=1)}
    assert {path: found["chained + KD"].changes[path] for path in chained} == chained
    shapes = []
    for row in ("pruned + KD", "chained + KD"):
        *_, (cell, config) = pruned_configs(found[row].cell)
        shapes.append(target(cell.prune, config))
    assert shapes[0] == shapes[1]


def test_strategy_says_what_it_keeps(tmp_path):
    """Half of 6 heads in 2 groups would be one and a half heads a group."""
    table = table_of("strategy_ablation").at(load_profile("quick"), tmp_path)
    assert "6 of 6 layers, 96 of 192 channels, 192 of 512 neurons, 4 of 6 heads" in table.caveats[0]
