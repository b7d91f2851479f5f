"""Volumes of basins: ellipsoids against their closed form, the radius, and what moves in a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from refusals import refuses
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_prune.config import BasinTest, Cell
from lit_prune.config.overrides import override
from lit_prune.config.table import BASIN, BIASED
from lit_prune.evaluate.basin import log_volume, measure_basin, moved_weights, radius, random_direction
from lit_prune.evaluate.perplexity import sequence_losses
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.validate import check_ranges

IDS = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": IDS, "labels": IDS}]


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("curvatures", [(2.0,), (0.5, 3.0), (0.3, 1.0, 4.0), (0.5, 1.0, 2.0, 5.0)])
def test_the_volume_of_an_ellipsoid_is_that_of_its_half_axes(curvatures: Sequence[float]) -> None:
    """x' A x / 2 <= epsilon has the half axes sqrt(2 epsilon / a)."""
    n, epsilon, a = len(curvatures), 0.2, torch.tensor(curvatures, dtype=torch.float64)
    drawn = torch.randn(4_000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radii = torch.tensor(
        [
            radius(lambda r, half=half: r**2 * half, epsilon, 1e-6)
            for half in ((drawn / drawn.norm(dim=1, keepdim=True)) ** 2 @ a / 2).tolist()
        ],
        dtype=torch.float64,
    )
    ball = {1: 2.0, 2: math.pi, 3: 4 * math.pi / 3, 4: math.pi**2 / 2}[n]
    exact = ball * math.prod(math.sqrt(2 * epsilon / one) for one in curvatures)
    assert log_volume(radii, n) == pytest.approx(math.log(exact), abs=0.05)


def test_the_volume_of_a_ball_is_exact_in_many_dimensions() -> None:
    radii = torch.full((5,), 0.5, dtype=torch.float64)
    n = 10_000  # (0.5 sqrt(pi))^n / Gamma(n / 2 + 1) underflows
    assert log_volume(radii, n) == pytest.approx(n * math.log(0.5 * math.sqrt(math.pi)) - math.lgamma(n / 2 + 1))


@pytest.mark.parametrize("exact", [3e-5, 0.1, 0.7, 5.0, 4000.0])
@pytest.mark.parametrize("tolerance", [0.1, 1e-4])
def test_a_radius_is_found_to_its_tolerance(exact: float, tolerance: float) -> None:
    found = radius(lambda r: (r / exact) ** 3 * 0.1, 0.1, tolerance)
    assert abs(found / exact - 1) <= tolerance


@pytest.mark.parametrize("rise", [lambda r: 0.0, lambda r: math.nan])
def test_a_loss_that_never_or_always_exceeds_the_threshold_is_an_error(rise: Any) -> None:
    with pytest.raises(RuntimeError, match="basin"):
        radius(rise, 0.1, 1e-3)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


@pytest.mark.parametrize("build", [llama, gpt2])
def test_filters_move_by_their_norms_and_pruned_weights_not_at_all(build: Any) -> None:
    model = build()
    masked, name = {}, next(name for name, p in model.named_parameters() if "mlp" in name and p.ndim == 2)
    masked[name] = torch.rand(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(2)) < 0.5
    model.get_parameter(name).data *= masked[name]
    moved = moved_weights(model, masked)
    matrices = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    assert [one.weight is p for one, p in zip(moved, matrices.values(), strict=True)] == [True] * len(matrices)
    for one, step, (path, weight) in zip(
        moved, random_direction(moved, torch.Generator().manual_seed(0)), matrices.items(), strict=True
    ):
        rows = weight.detach().T if build is gpt2 and path.startswith("transformer.h.") else weight.detach()
        torch.testing.assert_close(step.norm(dim=1), rows.norm(dim=1))
        assert torch.equal(one.turned(step) == 0, ~masked[path] if path == name else torch.zeros_like(weight).bool())


def test_a_model_is_measured_like_by_hand_and_left_as_it_was() -> None:
    model = llama()
    masks = {"model.layers.0.mlp.up_proj.weight": torch.arange(24 * 16).view(24, 16) % 2 == 0}
    model.get_parameter(*masks).data *= masks[next(iter(masks))]
    before = copy.deepcopy(model.state_dict())
    test = BasinTest(num_directions=3, epsilon=0.05, tolerance=1e-5, seed=7)
    found = measure_basin(model, masks, BATCHES, test)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert found["basin_num_weights"] == sum(p.numel() for p in model.parameters() if p.ndim > 1) - 24 * 8
    assert found == measure_basin(model, masks, BATCHES, test)
    assert found != measure_basin(model, masks, BATCHES, BasinTest(num_directions=3, epsilon=0.05, seed=8))
    generator, logs, lowest = torch.Generator().manual_seed(7), [], sequence_losses(model, BATCHES).mean
    for _ in range(3):
        twin = copy.deepcopy(model)
        moved = moved_weights(model, masks)
        steps = random_direction(moved, generator)
        distances = torch.logspace(-2, 1, 601, dtype=torch.float64)
        for distance in distances.tolist():
            for weight, one, step in zip(
                [p for p in twin.parameters() if p.ndim > 1], moved, steps, strict=True
            ):  # an exhaustive search on a grid
                weight.data = one.start + distance * step
            if sequence_losses(twin, BATCHES).mean - lowest > 0.05:
                break
        logs.append(math.log(distance))
    assert found["basin_mean_log_radius"] == pytest.approx(sum(logs) / 3, abs=0.012)
    assert found["basin_log_volume"] == pytest.approx(
        log_volume(torch.tensor(logs, dtype=torch.float64).exp(), found["basin_num_weights"]),
        abs=0.012 * found["basin_num_weights"],
    )


def test_tables_have_its_columns_and_caveat_only_if_it_is_measured() -> None:
    cell = override(Cell(), {"evaluation.basin.num_directions": 5})
    assert TABLE.measuring(Cell()) is TABLE
    table = TABLE.measuring(cell)
    assert set(BASIN) <= set(table.metrics)
    assert set(BASIN) <= set(table.higher_is_better)
    assert BIASED in table.caveats
    assert table.measuring(cell) == table


def test_more_sequences_than_are_validated_are_refused() -> None:
    with refuses("evaluation.basin.num_sequences", 65):
        check_ranges(override(Cell(), {"evaluation.basin.num_sequences": 65}))
