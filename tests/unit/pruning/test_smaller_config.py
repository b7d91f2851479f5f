"""The config of a smaller model: changed and kept fields, and shapes that the family's config forbids."""

import pytest
import torch
from families import (
    CASES,
    HEAD_DIM,
    config_of,
    plan_for,
)
from huggingface_hub.errors import StrictDataclassError
from refusals import refuses
from transformers import AutoModelForCausalLM, Phi3Config

from lit_prune.models.model_family import FAMILIES, anatomy_of, layers_of
from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import PrunePlan


@pytest.mark.parametrize("name", [name for name, (family, _) in CASES.items() if not FAMILIES[family].tied_width])
def test_a_width_that_is_no_multiple_of_the_heads_is_refused_where_the_config_refuses_it(name):
    """Transformers' own check of a config says so, when a model is loaded."""
    config = config_of(name)
    try:
        type(config).from_dict(config.to_dict() | {"hidden_size": 35})
    except StrictDataclassError:
        assert anatomy_of(config).whole_heads
    else:
        assert not anatomy_of(config).whole_heads


def test_attention_implementation_dtype_head_width_and_generation_settings_are_kept():
    model = AutoModelForCausalLM.from_config(config_of("llama"), attn_implementation="eager", dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [2, 5]
    for kind in ("all", "uneven"):
        student = surgery.apply(model, plan_for("llama", kind))
        assert student.config._attn_implementation == "eager"
        assert layers_of(student)[0].self_attn.config._attn_implementation == "eager"
        assert student.dtype == torch.bfloat16
        assert student.config.head_dim == HEAD_DIM
        assert student.generation_config.eos_token_id == [2, 5]


def test_what_the_config_lists_by_block_goes_with_the_blocks_and_nothing_else_does():
    config = config_of("smollm3")
    config.eos_token_id = [2, 3, 4]  # as many as there are blocks
    whole = shape_of(config)
    everything = PrunePlan.everything(whole)
    plan = PrunePlan(whole, everything.hidden, everything.layers[1:])
    smaller = surgery.smaller_config(config, plan)
    assert smaller.no_rope_layers == [0, 1]
    assert smaller.layer_types == ["full_attention"] * 2
    assert smaller.eos_token_id == [2, 3, 4]
    sliding = surgery.smaller_config(config_of("gemma2"), PrunePlan(whole, everything.hidden, everything.layers[1:]))
    assert sliding.layer_types == ["full_attention", "sliding_attention"]


def test_a_shape_the_config_forbids_is_refused_in_a_line():
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [1.0] * 2}
    config = Phi3Config(
        vocab_size=96, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=6,
        max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=factors, pad_token_id=0,
    )  # fmt: skip
    whole = PrunePlan.everything(shape_of(config))
    plan = PrunePlan(whole.original, whole.hidden[:12], whole.layers)
    with refuses("plan", "phi3", "short_factor"):
        surgery.smaller_config(config, plan)
