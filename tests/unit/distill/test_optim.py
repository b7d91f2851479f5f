"""Optimizer and schedule: the learning rate of every step, and weight decay on matrices only."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from distilled import ALL_STATES, llama, student_of
from torch import nn

from lit_prune.config import Distill, Optimizer
from lit_prune.distill import optim
from lit_prune.distill.module import Distiller


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (1, 2), (0, 5), (200, 7000)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_minimum(warmup, steps):
    recipe = Optimizer(lr=1e-3, min_lr=1e-5, warmup_steps=warmup)
    rates = [optim.learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([1e-3 * (i + 1) / warmup for i in range(warmup)])
    assert rates[min(warmup, steps - 1) - bool(warmup)] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert optim.learning_rate(recipe, steps + 10, steps) == pytest.approx(1e-5)


@pytest.mark.parametrize("steps", [4, 10])
def test_a_run_no_longer_than_its_warm_up_has_no_decay(steps):
    rates = [optim.learning_rate(Optimizer(lr=1.0, min_lr=0.01, warmup_steps=10), step, steps) for step in range(steps)]
    assert rates == pytest.approx([(i + 1) / 10 for i in range(steps)])


def test_the_learning_rate_is_halfway_in_the_middle_of_the_decay():
    assert optim.learning_rate(Optimizer(lr=1.0, min_lr=0.2, warmup_steps=10), 55, 101) == pytest.approx(0.6)


def test_two_runs_have_one_schedule_between_them():
    whole = Optimizer(lr=1e-3, min_lr=1e-5, warmup_steps=10)
    first, second = (dataclasses.replace(whole, schedule_steps=40, schedule_start=start) for start in (0, 25))
    rates = [optim.learning_rate(first, step, 25) for step in range(25)]
    rates += [optim.learning_rate(second, step, 15) for step in range(15)]
    assert rates == [optim.learning_rate(whole, step, 40) for step in range(40)]


def test_the_schedule_gives_every_step_its_learning_rate():
    recipe = Optimizer(lr=1e-3, min_lr=1e-5, warmup_steps=3)
    made = optim.configure(nn.Linear(2, 2), recipe, 10)
    assert made["lr_scheduler"]["interval"] == "step"
    for step in range(10):
        rates = [group["lr"] for group in made["optimizer"].param_groups]
        assert rates == pytest.approx([optim.learning_rate(recipe, step, 10)] * 2)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


def test_weight_decay_is_for_matrices_and_not_for_vectors():
    module = Distiller(student_of(), llama(), Distill(alpha=1.0, **ALL_STATES))
    module.student.model.embed_tokens.weight.requires_grad_(False)
    recipe = Optimizer(weight_decay=0.3, beta1=0.8, beta2=0.9)
    groups = optim.configure(module, recipe, 10)["optimizer"].param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    decay_of = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    vectors = {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert decay_of == {
        name: 0.0 if name in vectors else 0.3 for name in names.values() if name != "student.model.embed_tokens.weight"
    }
    assert all(group["betas"] == (0.8, 0.9) for group in groups)


def test_sgd_adds_weight_decay_to_the_gradient_and_has_momentum():
    recipe = Optimizer(lr=0.1, warmup_steps=0, weight_decay=0.3, beta1=0.8, algorithm="sgd")
    module = nn.Linear(2, 1)
    made = optim.configure(module, recipe, 3)
    weight, velocity = module.weight.detach().double(), 0.0
    for step, gradient in enumerate((0.5, -0.2, 0.1)):
        module.weight.grad, module.bias.grad = torch.full((1, 2), gradient), torch.zeros(1)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
        velocity = 0.8 * velocity + gradient + 0.3 * weight
        weight = weight - optim.learning_rate(recipe, step, 3) * velocity
        torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)
