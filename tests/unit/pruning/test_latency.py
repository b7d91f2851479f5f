"""Prices in time: composed by hand, measured on small models, and the choice against all combinations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruning_context import small_llama
from refusals import refuses

from lit_prune.config import Timing
from lit_prune.models.random_weights import random_model
from lit_prune.pruning.latency import (
    Latencies,
    Stopwatch,
    _only,
    compared,
    in_words,
    measure,
    number_of_measurements,
    priced,
)
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.unit_costs import UnitCosts
from lit_prune.pruning.variants import Library

TIMING = Timing(batch_size=2, seq_len=16, num_repeats=3)
CPU = torch.device("cpu")


def library_of(model: Any, **options: bool) -> Library:
    costs = UnitCosts.parameters(model.config)
    return Library.of(costs, (0.5,), (0.5,), options.get("drops", True), options.get("drops_sublayers", True))


def known(numbers: list[float]) -> Callable[[Callable[[], float]], float]:
    """The service of a run that has measured these numbers before."""
    rest = iter(numbers)
    return lambda measure: next(rest)


def test_latencies_are_differences_to_the_model_without_sublayers() -> None:
    model, seen = small_llama(num_hidden_layers=4), list[int]()
    numbers = [0.002, 0.2, 0.6, 0.4, 0.8, 0.1]  # seconds; shares of no sub-layer, 2 and 1 groups, 40 and 20 neurons
    watch = Stopwatch(model.config, TIMING, CPU, known(numbers))
    found = measure(watch, library_of(model), seen.append)
    assert found == Latencies(2_000_000, 400_000, {2: 200_000, 1: 100_000}, {40: 300_000, 20: 0})
    assert (found.attention(1), found.mlp(40), found.attention(0), found.mlp(0)) == (100_000, 300_000, 0, 0)
    assert seen == [2, 3, 4, 5, 6]
    assert number_of_measurements(library_of(model)) == len(numbers)


def test_the_limit_is_a_share_of_the_sum_over_the_whole_model() -> None:
    library = library_of(small_llama(num_hidden_layers=4))
    latencies = Latencies(2_000_000, 400_000, {2: 200_000, 1: 100_000}, {40: 300_000, 20: 50_000})
    found, limit = priced(library, latencies, 0.5)
    assert limit == (400_000 + 4 * 500_000) // 2
    assert found.of_model([(40, 2), (20, 0), (0, 1), (0, 0)]) == 400_000 + 500_000 + 50_000 + 100_000
    with refuses("prune.latency", "0.271"):  # one layer with 20 neurons and, as its config demands, both groups
        priced(library, latencies, 0.25)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_within_a_time_is_the_best_of_all_combinations(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    times = torch.randint(0, 1_000_000, (5,), generator=draw).tolist()
    latencies = Latencies(10**7, times[0], {2: times[1], 1: times[2]}, {40: times[3], 20: times[4]})
    library, _ = priced(library_of(small_llama(num_hidden_layers=3)), latencies, 1.0)
    effects = torch.rand(3, len(library.parts()), generator=draw, dtype=torch.float64)

    def effect(sizes: Any) -> float:
        parts = [dict(zip(library.parts(), row.tolist(), strict=True)) for row in effects]
        return sum(
            one[size] if size == (0, 0) else one.get((size[0], 2), 0.0) + one.get((40, size[1]), 0.0)
            for one, size in zip(parts, sizes, strict=True)
        )

    whole = library.of_model([(40, 2)] * 3)
    for share in (0.0, 0.3, 0.6, 0.9):
        limit = int(library.least() + share * max(0, whole - library.least()))
        fitting = [
            sizes
            for sizes in itertools.product(library.sizes(), repeat=3)
            if library.of_model(sizes) <= limit and any(map(library.sufficient, sizes))
        ]
        found = library.choose(effects.flatten().tolist(), limit)
        assert library.of_model(found) <= limit
        assert effect(found) == pytest.approx(min(map(effect, fitting)), abs=1e-9)


def test_wide_variants_take_longer_than_narrow_ones() -> None:
    model = small_llama(
        num_hidden_layers=2, hidden_size=128, intermediate_size=4096, num_attention_heads=32, num_key_value_heads=32,
        head_dim=32,
    )  # fmt: skip
    costs = UnitCosts.parameters(model.config)
    library = Library.of(costs, (0.01,), (0.04,), True, True)
    watch = Stopwatch(model.config, Timing(batch_size=2, seq_len=64, num_repeats=5), CPU, lambda measure: measure())
    found = measure(watch, library, lambda done: None)
    assert found.attention(32) > found.attention(1)
    assert found.mlp(4096) > found.mlp(41)
    assert 0 < found.outside < found.whole
    whole = PrunePlan.everything(library.whole)
    plan = PrunePlan(
        whole.original, whole.hidden, (LayerPlan(0, (), whole.layers[0].heads), LayerPlan(1, tuple(range(41)), ()))
    )
    report = compared(priced(library, found, 1.0)[0], found, plan, 0.5)
    assert report["predicted_student"] == round((found.outside + found.attention(32) + found.mlp(41)) / 1e6, 4)
    assert report["student"] == round(found.whole / 2e6, 4)
    assert report["mlp"].keys() == {4096, 41}
    words = in_words(report | {"conditions": watch.conditions})
    assert words.startswith("a forward pass over 2 x 64 tokens in 32-true on ")
    assert "\n" not in words


def test_models_that_are_timed_have_one_kind_of_sublayer() -> None:
    config = small_llama(num_hidden_layers=2).config
    attention, mlp, none = (random_model(_only(config, size)) for size in ((0, 1), (20, 0), (0, 0)))
    layer, outside = 32 + 6 * 8 * 32, 2 * 64 * 32 + 32
    assert attention.num_parameters() == outside + 2 * layer
    assert mlp.num_parameters() == outside + 2 * (32 + 3 * 32 * 20)
    assert none.num_parameters() == outside
