"""IMP: two rounds by hand in float64, rewinding, controls, masks of another run, and a run that is killed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from multiplied import Flops
from pruning_context import IDS, Stop, context_of, small_llama
from refusals import refuses
from torch import nn
from transformers import LlamaForCausalLM

from lit_prune.config import Calibration, Optimizer
from lit_prune.methods import methods
from lit_prune.models.files import MASKS
from lit_prune.pruning.context import Pruned
from lit_prune.pruning.masks import save_masks
from lit_prune.pruning.method_work import Work

RATE = 0.3
PLAIN = Optimizer(lr=RATE, min_lr=RATE, warmup_steps=0, weight_decay=0.0, max_grad_norm=1e9, beta1=0.0, algorithm="sgd")
"""Gradient descent: theta - RATE * gradient, so that a step over all sequences can be computed by hand."""
STEP = {"batch_size": len(IDS), "optimizer": PLAIN}


def linears(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.endswith("_proj.weight")}


def descended(model: Any, masks: dict[str, torch.Tensor]) -> Any:
    """A float64 model after one step in which masked weights stay zero."""
    twin = copy.deepcopy(model).double().requires_grad_(True)
    for name, kept in masks.items():
        twin.get_parameter(name).data *= kept
    twin(IDS, labels=IDS).loss.backward()
    for name, parameter in twin.named_parameters():
        parameter.data -= RATE * parameter.grad * masks.get(name, torch.ones(()))
    return twin


def largest(model: Any, density: float) -> dict[str, torch.Tensor]:
    found = {}
    for name, weight in linears(model).items():
        order = weight.detach().abs().flatten().argsort(descending=True)
        kept = torch.zeros(weight.numel(), dtype=torch.bool)
        kept[order[: weight.numel() - round((1 - density) * weight.numel())]] = True
        found[name] = kept.view(weight.shape)
    return found


def same(found: Any, expected: Any) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], kept) for name, kept in expected.items())


def random_llama(seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(small_llama().config)


def ticket(folder: Path, seed: int = 0, **settings: Any) -> Pruned:
    """The result with few steps and a high rate, so that training changes what is small."""
    given = {"max_steps": 3, "num_rounds": 2, **STEP} | settings
    return methods["imp"](**given).prune(small_llama(), context_of(folder, seed=seed, checkpoint_seconds=1e9))


def test_two_rounds_prune_the_smallest_trained_weights_and_rewind_the_others(tmp_path: Path) -> None:
    model = small_llama()
    first = largest(descended(model, {}), 0.8)
    second = largest(descended(model, first), 0.64)
    found = ticket(tmp_path, start="model", max_steps=1, sparsity=1 - 0.8**2)
    assert same(found.masks, second)
    assert not same(found.masks, largest(model, 0.64))  # training matters
    assert not same(found.masks, largest(descended(model, {}), 0.64))  # and so does the second round
    for name, weight in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight * found.masks.get(name, torch.ones(())))
        assert torch.equal(small_llama().state_dict()[name], weight)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_density_after_n_rounds_is_that_of_20_percent_each(tmp_path: Path, rounds: int) -> None:
    found = ticket(tmp_path, num_rounds=rounds, sparsity=1 - 0.8**rounds, max_steps=1)
    assert all(int(kept.sum()) == round(0.8**rounds * kept.numel()) for kept in found.masks.values())
    assert len(list((tmp_path / "training").iterdir())) == rounds


def test_weights_are_drawn_from_the_seed(tmp_path: Path) -> None:
    model = small_llama()
    for start in ("random", "random_linears"):
        found, other = (ticket(tmp_path / f"{start}{seed}", seed, start=start) for seed in (3, 4))
        drawn = random_llama(3).state_dict()
        for name, weight in found.model.state_dict().items():
            expected = drawn if start == "random" or name in found.masks else model.state_dict()
            assert torch.equal(weight, expected[name] * found.masks.get(name, torch.ones(())))
        assert not same(found.masks, other.masks)


def test_survivors_are_rewound_to_a_later_step(tmp_path: Path) -> None:
    model = small_llama()
    found = ticket(tmp_path, start="model", max_steps=2, rewind_step=1, num_rounds=1)
    rewound = descended(model, {})
    assert same(found.masks, largest(descended(rewound, {}), 0.512))
    for name, weight in rewound.state_dict().items():
        kept = found.masks.get(name, torch.ones(()))
        torch.testing.assert_close(found.model.state_dict()[name].double(), weight * kept, rtol=1e-3, atol=1e-6)


def test_all_weights_are_compared_with_each_other(tmp_path: Path) -> None:
    trained = descended(small_llama(), {})
    found = ticket(tmp_path, start="model", max_steps=1, num_rounds=1, comparison="model")
    every = torch.cat([weight.detach().abs().flatten() for weight in linears(trained).values()])
    threshold = every.sort().values[round(0.488 * every.numel())]
    assert same(found.masks, {name: weight.abs() >= threshold for name, weight in linears(trained).items()})


@pytest.mark.parametrize("comparison", ["matrix", "model"])
def test_random_masks_have_the_density_of_the_ticket_in_each_matrix(tmp_path: Path, comparison: str) -> None:
    found = ticket(tmp_path / "found", comparison=comparison)
    control = ticket(tmp_path / "control", comparison=comparison, control="random_masks")
    for name, kept in found.masks.items():
        assert int(control.masks[name].sum()) == int(kept.sum())
        weights = random_llama(0).get_parameter(name) * control.masks[name]
        assert torch.equal(control.model.get_parameter(name), weights)
        overlap = (control.masks[name] & kept).sum() / kept.sum()
        assert overlap.item() == pytest.approx(kept.float().mean().item(), abs=0.15)
    assert (tmp_path / "control/training").exists() == (comparison == "model")


@pytest.mark.parametrize(("rewind_step", "comparison", "steps"), [(0, "matrix", 0), (1, "matrix", 1), (1, "model", 5)])
def test_random_masks_cost_only_the_rounds_that_find_their_densities(
    tmp_path: Path, rewind_step: int, comparison: str, steps: int
) -> None:
    """In all matrices together the densities are those that two rounds of two steps each find."""
    settings = {"control": "random_masks", "rewind_step": rewind_step, "comparison": comparison}
    chosen = methods["imp"](max_steps=3, num_rounds=2, batch_size=len(IDS), **settings)
    with Flops() as spent:
        chosen.prune(small_llama(), context_of(tmp_path, checkpoint_seconds=1e9))
    work = Work(small_llama().config, Calibration(num_sequences=len(IDS), seq_len=IDS.shape[1]))
    assert chosen.own_flops(work) == steps * 3 * work.passes()
    assert spent.total == pytest.approx(chosen.own_flops(work), rel=0.1)


def test_reinitialised_survivors_have_the_mask_of_the_ticket_and_other_weights(tmp_path: Path) -> None:
    found = ticket(tmp_path / "found", start="random_linears", rewind_step=1)
    control = ticket(tmp_path / "control", start="random_linears", rewind_step=1, control="reinitialised")
    assert same(control.masks, found.masks)
    for name, weight in control.model.state_dict().items():
        drawn = name in found.masks
        assert torch.equal(weight, small_llama().state_dict()[name]) == (not drawn)
        other = found.model.state_dict()[name]
        assert not drawn or (weight[weight != 0] != other[weight != 0]).float().mean() > 0.99


def test_masks_of_another_run_are_applied_to_the_weights_of_this_one(tmp_path: Path) -> None:
    found = ticket(tmp_path / "found", sparsity=0.7)
    save_masks(found.masks, tmp_path)
    moved = ticket(tmp_path / "moved", seed=5, plan_path=str(tmp_path / MASKS))
    assert same(moved.masks, found.masks)
    drawn = random_llama(5).state_dict()
    for name, weight in moved.model.state_dict().items():
        assert torch.equal(weight, drawn[name] * found.masks.get(name, torch.ones(())))
    assert not (tmp_path / "moved/training").exists()


@pytest.mark.parametrize("stopped", [2, 6, 9])
def test_killed_and_resumed_is_uninterrupted_across_rounds(tmp_path: Path, stopped: int) -> None:
    chosen = methods["imp"](max_steps=4, rewind_step=1, batch_size=2, num_rounds=3)  # 1 + 3 * 3 steps
    whole = chosen.prune(small_llama(), context_of(tmp_path / "whole"))
    steps = 0

    def stop(done: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stopped:
            raise Stop

    with pytest.raises(Stop):
        chosen.prune(small_llama(), context_of(tmp_path / "cut", on_step=stop))
    resumed = chosen.prune(small_llama(), context_of(tmp_path / "cut", on_step=stop))
    assert steps < 14  # the rounds that were finished are not repeated
    assert same(resumed.masks, whole.masks)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("prune.rewind_step", {"rewind_step": 3}),
        ("prune.optimizer.schedule_steps", {"optimizer": Optimizer(schedule_steps=9)}),
        ("prune.optimizer.min_lr", {"optimizer": Optimizer(lr=1e-6, min_lr=1e-5)}),
        ("prune.control", {"control": "reinitialised", "start": "model"}),
        ("prune.control", {"control": "random_masks", "plan_path": "masks.safetensors"}),
    ],
)
def test_settings_that_contradict_each_other_are_refused(field: str, settings: dict[str, Any]) -> None:
    with refuses(field):
        methods["imp"](**{"max_steps": 3} | settings).check_settings()
