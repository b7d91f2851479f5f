"""Layers of different widths, padded to the widest."""

import pytest
import torch
from families import (
    CASES,
    generates_with_cache_as_without,
    logits,
    model_of,
    plan_for,
    reloaded,
)
from silenced import tolerance

from lit_prune.models.shape import shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.pad import pad_to_uniform


@pytest.mark.parametrize("name", CASES)
def test_blocks_padded_to_the_widest_are_the_same_function_and_stock(name, tmp_path):
    plan = plan_for(name, "uneven")
    student = surgery.apply(model_of(name, torch.float64), plan)
    padded = pad_to_uniform(student)
    assert shape_of(padded.config) == plan.kept
    torch.testing.assert_close(logits(padded), logits(student), rtol=0, atol=tolerance(name))
    student = surgery.apply(model_of(name), plan)
    loaded, config = reloaded(pad_to_uniform(student), tmp_path)
    assert not [key for key in config if "per_layer" in key]
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=1e-4)
    assert generates_with_cache_as_without(loaded)


def test_padding_a_uniform_model_changes_nothing():
    model = model_of("llama")
    padded = pad_to_uniform(model)
    assert padded is not model
    assert torch.equal(logits(padded), logits(model))
