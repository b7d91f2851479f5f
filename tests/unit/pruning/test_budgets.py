"""Sizes within a budget of the layers' parameters, against counts by hand and built models."""

from __future__ import annotations

import pytest
from refusals import refuses
from transformers import LlamaConfig

from lit_prune.models.shape import meta_model
from lit_prune.pruning.budgets import LayerBudget
from lit_prune.pruning.low_rank import low_rank_config
from lit_prune.pruning.rotate import rotated_config

# A layer has 2 * 192^2 + 2 * 64 * 192 = 98,304 parameters of attention, 3 * 192 of each neuron, and 384 of norms.
CONFIG = LlamaConfig(
    vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=8, num_attention_heads=6,
    num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
)  # fmt: skip
LAYER = 98_304 + 576 * 512 + 384


def inside(config):
    """The parameters in the layers of a model with this config."""
    return sum(p.numel() for name, p in meta_model(config).named_parameters() if ".layers." in name)


def test_a_budget_is_of_the_layers_alone():
    half = LayerBudget(CONFIG, 0.5)
    assert half.removed == half.kept == 4 * LAYER
    assert half.num_parameters == 4 * LAYER + 2 * 2048 * 192 + 192
    assert half.num_hidden_layers == 4
    assert LayerBudget(CONFIG, 0.3).num_hidden_layers == 6  # 5.6
    assert LayerBudget(CONFIG, 0.99).num_hidden_layers == 1


def test_neurons_and_groups_share_what_a_layer_must_lose():
    half = LayerBudget(CONFIG, 0.5)
    assert half.neurons == 512 - round(LAYER / 2 / 576)
    assert half.units() == (512 - round((LAYER / 2 - 49_152) / 576), 1)
    # Two of eight layers are spared: the others lose four sixths, of which a group is a part.
    assert half.units(1, 1) == (512 - round((LAYER * 4 / 6 - 49_152) / 576), 1)
    assert LayerBudget(CONFIG, 0.1).units() == (512 - round(LAYER * 0.1 / 576), 2)


def test_a_budget_that_cannot_be_met_is_refused():
    with refuses("prune.intermediate_size", ">= 1"):
        _ = LayerBudget(CONFIG, 0.8).neurons
    with refuses("prune", "cannot remove", "not spared"):
        LayerBudget(CONFIG, 0.5).units(3, 3)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_slices_and_ranks_are_the_nearest_of_their_kind(share):
    budget = LayerBudget(CONFIG, share)
    width, rank = budget.sliced_width(), budget.rank()
    assert width % 8 == 0
    sliced = {w: abs(inside(rotated_config(CONFIG, w)) - budget.kept) for w in (width - 8, width, width + 8)}
    assert min(sliced, key=sliced.__getitem__) == width
    ranks = {r: abs(inside(low_rank_config(CONFIG, r)) - budget.kept) for r in (rank - 1 / 256, rank, rank + 1 / 256)}
    assert min(ranks, key=ranks.__getitem__) == rank
