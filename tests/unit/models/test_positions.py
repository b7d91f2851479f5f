"""Sequences are at most as long as a model's positions, whatever their kind."""

import pytest
from refusals import refuses
from transformers import AutoConfig

from lit_prune.config.overrides import override
from lit_prune.models.loading import load_config
from lit_prune.models.positions import positions_of
from lit_prune.pipeline.resolve import Resolver


def scaled(kind, **more):
    return {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("family", "fields", "positions"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {"n_positions": 64}, 64),
        ("llama", scaled("linear", factor=4.0), 16384),
        ("llama", scaled("dynamic", factor=2.0), 8192),
        ("qwen2", scaled("yarn", factor=4.0, original_max_position_embeddings=4096), 16384),
        ("qwen2", scaled("yarn", factor=4.0, original_max_position_embeddings=1024), 4096),
        ("llama", scaled("llama3", factor=8.0, **LLAMA3), 4096),
        ("gemma3_text", {"max_position_embeddings": 4096}, 4096),
    ],
)
def test_the_longest_sequence_a_config_allows(family, fields, positions):
    assert positions_of(AutoConfig.for_model(family, **fields)) == positions


@pytest.mark.parametrize("section", ["calibration", "distill", "evaluation"])
def test_a_longer_sequence_is_refused_before_tokenising(section, tiny_cell, tiny_runner):
    at_most, longer = (override(tiny_cell, {f"{section}.seq_len": block}) for block in (128, 129))
    tiny_runner.check([Resolver().pin(at_most)])
    with refuses(f"{section}.seq_len", 128, "got 129"):
        tiny_runner.check([Resolver().pin(longer)])


def test_a_length_that_nothing_is_trained_at_does_not_count(tiny_cell, tiny_runner):
    tiny_runner.check([Resolver().pin(override(tiny_cell, {"distill.seq_len": 129, "distill.max_steps": 0}))])


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
def test_longrope_has_a_factor_for_each_frequency(name, tmp_path, tiny_llama):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for wrong, problem in ((None, None), ([1.0] * 3, "got 3"), ([1.0], "got 1")):
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
        tiny_llama.config.rope_parameters = rope | factors | ({name: wrong} if wrong else {})
        tiny_llama.config.save_pretrained(tmp_path)
        if problem is None:
            assert load_config(str(tmp_path)).rope_parameters[name] == factors[name]
        else:
            with refuses(str(tmp_path), name, 4, problem):
                load_config(str(tmp_path))
