"""Numbers of units of a model, and which query heads belong to which KV group."""

import pytest

from lit_prune.models.shape import ModelShape

SHARED = ModelShape(1, hidden_size=8, intermediate_size=8, num_attention_heads=6, num_key_value_heads=3)


def test_query_heads_of_a_kv_group_are_neighbours():
    assert SHARED.heads_per_group == 2
    assert SHARED.heads_of((0, 2)) == (0, 1, 4, 5)
    assert SHARED.heads_of(range(3), 1) == (0, 2, 4)


@pytest.mark.parametrize(("axis", "count"), [("hidden", 8), ("neuron", 8), ("head", 6), ("kv_group", 3)])
def test_units_of_an_axis(axis, count):
    assert SHARED.units(axis) == count
