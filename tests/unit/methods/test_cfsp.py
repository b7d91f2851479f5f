"""CFSP against a float64 computation of its own: neurons per layer, and which of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import model_of, token_ids
from measured import evidence_of
from pruning_context import IDS, LAYERS
from torch import Tensor

from lit_prune.config import Prune
from lit_prune.importance.criteria import criteria
from lit_prune.methods import methods
from lit_prune.models.model_family import layers_of
from lit_prune.pruning.allocate import proportional_counts
from lit_prune.pruning.context import PruneContext

NEURONS = 40
L2 = Prune(batch_aggregation="l2", seq_aggregation="l2")


def seen_in(model: Any) -> tuple[Tensor, Tensor]:
    """The angle that each layer turns a state by, mean over tokens [L], and the norms of the neurons [L, neurons]."""
    states: list[Tensor] = []
    neurons: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0])))
    hooks += [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: neurons.append(given[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    x = torch.stack(states).double()
    angles = (torch.cosine_similarity(x[:-1], x[1:], dim=-1).clamp(-1, 1).arccos() / math.pi).mean((1, 2))
    return angles, torch.stack(neurons).double().square().sum((1, 2)).sqrt()


def scores_of(model: Any, layer: int, norms: Tensor, variant: str) -> Tensor:
    """The scores of the neurons of a layer: weights divided by their sum over neurons, or, as in the code, channels."""
    mlp = model.model.layers[layer].mlp
    down, up, gate = (m.weight.detach().double().abs() for m in (mlp.down_proj, mlp.up_proj, mlp.gate_proj))
    summed = 1 if variant == "paper" else 0
    shares = sum(matrix / matrix.sum(summed, keepdim=True) for matrix in (down * norms, up.T, gate.T))
    assert isinstance(shares, Tensor)
    return norms * shares.mean(0)


def best(scores: Tensor, count: int) -> tuple[int, ...]:
    return tuple(sorted(scores.argsort(descending=True)[:count].tolist()))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_neurons_follow_the_angles_and_the_scores(model: Any, ctx: PruneContext, variant: str) -> None:
    angles, norms = seen_in(model)
    plan = methods["cfsp"](variant=variant, sharpness=2.0).prune(model, ctx).plan
    assert plan is not None
    counts = [len(layer.neurons) for layer in plan.layers]
    assert sum(counts) == 30 * LAYERS
    ratios = 1 / (1 + (-2 * (angles - angles.mean())).exp())
    exact = ratios / ratios.sum() * 30 * LAYERS
    assert exact.max() < NEURONS
    assert all(abs(count - float(share)) < 1 for count, share in zip(counts, exact, strict=True))
    for layer, norm in zip(plan.layers, norms, strict=True):
        scores = scores_of(model, layer.index, norm, variant)
        assert layer.neurons == best(scores, len(layer.neurons))
        if variant == "official":
            torch.testing.assert_close(scores, 3 * norm / model.config.hidden_size)
            assert layer.neurons == best(norm, len(layer.neurons))
        assert layer.heads == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_scores_of_fused_and_of_turned_matrices(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    layer = layers_of(model)[1]
    stats = evidence_of(model, token_ids(), tmp_path, ["importance"])
    norms = criteria["activation"].score(stats, L2)["neuron"][1]
    if name == "phi3":
        down, inner = layer.get_parameter("mlp.down_proj.weight"), layer.get_parameter("mlp.gate_up_proj.weight")
        matrices = [down.double() * norms, *(part.T for part in inner.double().chunk(2))]
    else:
        down, inner = layer.get_parameter("mlp.c_proj.weight"), layer.get_parameter("mlp.c_fc.weight")
        matrices = [down.double().T * norms, inner.double()]
    shares = sum((m.detach().abs() / m.detach().abs().sum(1, keepdim=True)).mean(0) for m in matrices)
    torch.testing.assert_close(criteria["relative_activation"].score(stats, L2)["neuron"][1], norms * shares)


def test_without_sharpness_all_layers_keep_the_same_number(model: Any, ctx: PruneContext) -> None:
    plan = methods["cfsp"](sharpness=0.0, intermediate_size=21).prune(model, ctx).plan
    assert plan is not None
    assert {len(layer.neurons) for layer in plan.layers} == {21}


def test_nothing_is_measured_where_nothing_is_pruned(model: Any, ctx: PruneContext) -> None:
    whole = methods["cfsp"](intermediate_size=None)
    assert whole.statistics(model.config) == frozenset()
    assert whole.prune(model, ctx).model is model


@pytest.mark.parametrize(
    ("weights", "total", "most", "expected"),
    [
        ([1.0, 1.0, 1.0], 7, 10, [3, 2, 2]),
        ([1.0, 2.0, 3.0], 12, 10, [2, 4, 6]),
        ([1.0, 1.0, 98.0], 14, 10, [2, 2, 10]),
        ([1.0, 3.0, 96.0], 18, 10, [2, 6, 10]),
        ([1e-6, 1.0, 1.0], 9, 10, [1, 4, 4]),
        ([1.0, 2.0], 20, 10, [10, 10]),
        ([1.0, 2.0], 2, 10, [1, 1]),
    ],
)
def test_proportional_counts(weights: list[float], total: int, most: int, expected: list[int]) -> None:
    assert proportional_counts(torch.tensor(weights), total, most) == expected


def test_proportional_counts_meet_every_total() -> None:
    generator = torch.Generator().manual_seed(0)
    for total in range(6, 6 * 11 + 1):
        weights = torch.rand(6, generator=generator) ** 4 + 1e-9
        counts = proportional_counts(weights, total, 11)
        assert sum(counts) == total
        assert 1 <= min(counts) <= max(counts) <= 11
        ranked = [counts[i] for i in weights.argsort().tolist()]
        assert all(less <= more + 1 for less, more in itertools.combinations(ranked, 2))
    with pytest.raises(ValueError, match="total"):
        proportional_counts(torch.ones(3), 2, 5)
