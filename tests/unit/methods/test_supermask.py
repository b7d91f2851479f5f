"""Supermasks: both rules against a step of gradient descent in float64, signed constants, and what is drawn."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, context_of, small_llama
from refusals import refuses

from lit_prune.config import Optimizer
from lit_prune.methods import methods
from lit_prune.pruning.context import Pruned

RATE = 8.0
STEP = {
    "batch_size": len(IDS), "max_steps": 1, "optimizer": Optimizer(
        lr=RATE, min_lr=RATE, warmup_steps=0, weight_decay=0.0, max_grad_norm=1e9, beta1=0.0, algorithm="sgd"
    ),
}  # fmt: skip


def descended(model: Any) -> Any:
    twin = copy.deepcopy(model).double()
    twin(IDS, labels=IDS).loss.backward()
    for parameter in twin.parameters():
        parameter.data -= RATE * parameter.grad
    return twin


def masked(folder: Path, **settings: Any) -> Pruned:
    given = {"start": "model", **STEP} | settings
    return methods["supermask"](**given).prune(small_llama(), context_of(folder, checkpoint_seconds=1e9))


@pytest.mark.parametrize("rule", ["large_final", "large_final_same_sign"])
@pytest.mark.parametrize("values", ["initial", "signed_constant"])
def test_the_mask_keeps_the_highest_scores_of_untrained_weights(tmp_path: Path, rule: str, values: str) -> None:
    model = small_llama()
    trained = descended(model)
    found = masked(tmp_path, rule=rule, values=values, sparsity=0.4)
    flipped = 0
    for name, initial in model.state_dict().items():
        if name not in found.masks:
            assert torch.equal(found.model.state_dict()[name], initial)
            continue
        w_i, w_f, kept = initial.double(), trained.get_parameter(name).detach(), found.masks[name]
        scores = w_f.abs() if rule == "large_final" else (w_f * w_i.sign()).clamp(min=0)
        assert int((~kept).sum()) == round(0.4 * kept.numel())
        assert scores[kept].min() >= scores[~kept].max() - 1e-7
        flipped += int((w_f.sign() != w_i.sign())[kept].sum())
        expected = initial if values == "initial" else initial.sign() * initial.std()
        torch.testing.assert_close(found.model.state_dict()[name], expected * kept)
    assert (flipped > 0) == (rule == "large_final")


def test_by_default_the_linears_are_drawn_and_the_rest_stays(tmp_path: Path) -> None:
    found, other = (
        methods["supermask"](**STEP).prune(small_llama(), context_of(tmp_path / str(seed), seed=seed))
        for seed in (0, 1)
    )
    for name, weight in small_llama().state_dict().items():
        drawn = name in found.masks
        assert torch.equal(found.model.state_dict()[name], weight) == (not drawn)
        assert torch.equal(found.model.state_dict()[name], other.model.state_dict()[name]) == (not drawn)


def test_masks_of_another_run_are_refused() -> None:
    with refuses("prune.plan_path", "masks.safetensors"):
        methods["supermask"](plan_path="masks.safetensors").check(small_llama().config)
