"""Allocators by hand: the kept layers, and the number of kept units in each."""

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

from lit_prune.models.shape import ModelShape, parameter_counter, shape_of
from lit_prune.pruning.allocate import hidden_channels, layer_allocators, residual_merges, width_allocators
from lit_prune.pruning.plan import LayerPlan, Merge, PrunePlan

SIZES = {
    "vocab_size": 64, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip
QWEN = Qwen2Config(**SIZES)
LAYERS = {"layer": [torch.tensor([9.0, 1.0, 3.0, 2.0, 8.0])]}
# Blocks 1 and 2 are the two weakest one by one; 3 and 4 are the span that scores lowest as a whole.
SPANS = {"span": [torch.zeros(5), torch.tensor([7.0, 4.0, 5.0, 3.0])]}


@pytest.mark.parametrize(
    ("name", "scores", "kept"),
    [
        ("lowest_score", LAYERS, (0, 2, 4)),
        ("contiguous", SPANS, (0, 1, 2)),
        ("last", {}, (0, 1, 2)),
        ("last_but_final", {}, (0, 1, 4)),
    ],
)
def test_which_two_of_five_blocks_go(name, scores, kept):
    assert layer_allocators[name].choose(scores, 5, 2) == kept
    assert set(scores) == {layer_allocators[name].reads} - {None}


@pytest.mark.parametrize("name", list(layer_allocators))
def test_every_block_allocator_drops_as_many_as_asked_for(name):
    scores = {"layer": [torch.arange(6.0)], "span": [torch.arange(7.0 - n) for n in range(1, 7)]}
    for drop in range(1, 6):
        kept = layer_allocators[name].choose(scores, 6, drop)
        assert len(kept) == 6 - drop
        assert list(kept) == sorted(set(kept))
        assert set(kept) <= set(range(6))


def test_published_layers_16_to_31_of_32_are_the_last_but_the_very_last():
    kept = layer_allocators["last_but_final"].choose({}, 32, 16)
    assert [index + 1 for index in kept] == [*range(1, 16), 32]


def scores_of(layers=4):
    generator = torch.Generator().manual_seed(0)
    return {
        "neuron": [torch.rand(10, generator=generator) for _ in range(layers)],
        "head": [torch.rand(6, generator=generator) for _ in range(layers)],
    }


@pytest.mark.parametrize("name", list(width_allocators))
@pytest.mark.parametrize(
    "target", [ModelShape(4, 24, 5, 4, 2), ModelShape(3, 20, 10, 2, 2), ModelShape(4, 24, 7, 6, 2)]
)
def test_every_width_allocator_makes_plans_that_can_be_carried_out_and_meet_the_budget(name, target):
    kept = tuple(range(target.num_hidden_layers))
    blocks = width_allocators[name](scores_of(), kept, target, QWEN)
    plan = PrunePlan(shape_of(QWEN), tuple(range(target.hidden_size)), blocks)
    plan.check(QWEN)
    count = parameter_counter(QWEN)
    table = count(ModelShape(target.num_hidden_layers, target.hidden_size, 0, 0, 0))  # what is no block's width
    shapes = [plan.shape_of_layer(block) for block in blocks]
    spent = sum((count(shape) - table) / target.num_hidden_layers for shape in shapes)
    budget = count(target) - table
    price_of_a_neuron = 3 * target.hidden_size
    assert budget - price_of_a_neuron < spent <= budget


def test_global_widths_go_where_the_scores_are():
    scores = scores_of()
    scores["neuron"] = [torch.full((10,), 1.0) for _ in range(4)]
    scores["neuron"][2] = torch.tensor([30.0] + [0.01] * 9)  # one neuron does the work of this block
    blocks = width_allocators["global"](scores, (0, 1, 2, 3), ModelShape(4, 24, 5, 6, 2), QWEN)
    widths = [len(block.neurons) for block in blocks]
    assert blocks[2].neurons == (0,)
    assert sum(widths) == 20
    assert all(len(block.heads) == 6 for block in blocks)


def test_groups_go_as_a_whole_and_the_strongest_stay():
    head = torch.tensor([1.0, 1.0, 9.0, 5.0, 4.0, 3.0])  # means 3.67 and 4
    scores = {"neuron": [torch.arange(10.0)] * 4, "head": [head] * 4}
    (block,) = width_allocators["uniform"](scores, (0,), ModelShape(1, 24, 10, 2, 1), QWEN)
    assert block.heads == (3, 4)


def test_hidden_channels_are_the_best_and_ties_go_to_the_lower_index():
    scores = {"hidden": [torch.tensor([0.0, 5.0, 5.0, 5.0, 1.0, 9.0])]}
    assert hidden_channels(scores, 3, 6) == (1, 2, 5)
    assert hidden_channels({}, 6, 6) == tuple(range(6))


def test_the_weakest_kept_head_is_paired_with_the_strongest_pruned_one():
    whole = ModelShape(1, 24, 10, 12, 2)
    # Group 0 sorted: 3 5 0 2 | 4 1; group 1 sorted: 6 7 8 9 | 10 11. With L = 6 and K = 4, i = 4 pairs with 2K-i+1 = 5.
    scores = torch.tensor([7.0, 1.0, 6.0, 9.0, 2.0, 8.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    block = LayerPlan(0, (), (0, 2, 3, 5, 6, 7, 8, 9))
    assert residual_merges(scores, block, whole, 1.0) == (
        Merge(0, 1, 1.0), Merge(2, 4, 1.0), Merge(8, 11, 1.0), Merge(9, 10, 1.0),
    )  # fmt: skip


def test_heads_with_their_own_keys_and_values_are_one_group():
    whole = shape_of(LlamaConfig(**SIZES | {"num_key_value_heads": 6}))
    block = LayerPlan(0, (), (0, 1, 2, 3))
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    assert residual_merges(scores, block, whole, -1.0) == (Merge(2, 5, -1.0), Merge(3, 4, -1.0))
