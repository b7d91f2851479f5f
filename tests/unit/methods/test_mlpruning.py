"""MLPruning: masks and their straight-through gradients by hand, and thresholds that meet the budget."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, context_of, small_llama

from lit_prune.methods import methods
from lit_prune.pruning.learned.thresholds import ThresholdLearner, _TopShare
from lit_prune.pruning.units import UnitSpace

BATCH = {"input_ids": IDS, "labels": IDS}


def learner(model: Any, share: float = 0.7, **settings: Any) -> ThresholdLearner:
    given = {
        "lr": 1e-3, "score_lr": 0.3, "weight": 400.0, "ce_weight": 0.1, "temperature": 2.0, "max_steps": 60,
    } | settings  # fmt: skip
    return ThresholdLearner(model, copy.deepcopy(model), UnitSpace.of(model.config, share), **given)


def test_masks_and_their_gradients_by_hand() -> None:
    """sigmoid(0) of five units is 2.5, so three stay; sigmoid(-9) keeps one."""
    scores = torch.tensor([[0.1, 0.5, -0.2, 0.4, 0.3], [0.0, 0.0, 0.2, 0.0, 0.0]], requires_grad=True)
    thresholds = torch.tensor([0.0, -9.0], requires_grad=True)
    mask = _TopShare.apply(scores, thresholds)
    assert mask.tolist() == [[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]
    (mask * torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])).sum().backward()
    assert scores.grad.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert thresholds.grad.tolist() == [11, 8]


def test_the_loss_against_float64(monkeypatch: Any) -> None:
    model = small_llama()
    module = learner(model, weight=1e6)
    module.student.lm_head.weight.data += 0.05 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    found = module.training_step(BATCH, 0).item()
    student, teacher = copy.deepcopy(module.student).double(), copy.deepcopy(model).double()
    with torch.no_grad():
        ours, theirs = (one(IDS, labels=IDS) for one in (student, teacher))
        p, q = ((one.logits[:, :-1] / 2).log_softmax(-1) for one in (ours, theirs))
        kl = (q.exp() * (q - p)).sum(-1).mean() * 4
    space = module.space
    whole = float(space.prices.sum())
    excess = 1 / (1 + math.exp(-5)) - (space.budget - space.fixed) / whole
    strength = 1e6 * excess**2 / (1 - (space.budget - space.fixed) / whole) ** 2
    expected = 0.1 * ours.loss.item() + 0.9 * kl.item() + strength * excess**2  # the states are equal
    assert found == pytest.approx(expected, rel=1e-4)


def test_thresholds_descend_to_the_budget(tmp_path: Path) -> None:
    module = learner(small_llama())
    context_of(tmp_path, checkpoint_seconds=1e9).fit(module, "", max_steps=60, batch_size=2)
    assert module._excess().item() < 0.03


def test_priorities_keep_what_the_thresholds_keep() -> None:
    """At a budget that the masks of the thresholds just meet, the plan is these masks."""
    module = learner(small_llama())
    generator = torch.Generator().manual_seed(0)
    module.scores.data = torch.randn(module.space.size, generator=generator)
    module.thresholds.data[0] = torch.tensor([5.0, 5, 5, 5, 0, 0, 0, 0]) - 1
    module.thresholds.data[1] = torch.randn(8, generator=generator) + 1
    mask = module._mask().detach() > 0
    kept = int(module.space.fixed + float(module.space.prices[mask].sum()))
    assert UnitSpace.of(module.model.config, kept).plan(module.priorities()) == module.space.plan_of(mask)


def test_a_checkpoint_holds_what_is_trained_and_not_the_model_that_is_imitated(tmp_path: Path) -> None:
    methods["mlpruning"](max_steps=1, batch_size=2).prune(small_llama(), context_of(tmp_path))
    saved = torch.load(tmp_path / "training/1/last.ckpt")["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"student", "scores", "thresholds"}
