"""Recipes and flags that cannot be carried out, each refused in one line before anything is computed."""

from __future__ import annotations

import pytest

from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.config.overrides import override, refuse_two_budgets
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.validate import check, check_execution

RECIPES = {
    "distill.optimizer.lr": (0.0, "distill.optimizer.lr: must be > 0, got 0.0"),
    "distill.optimizer.min_lr": (-1.0, "distill.optimizer.min_lr: must be >= 0, got -1.0"),
    "distill.optimizer.warmup_steps": (-3, "distill.optimizer.warmup_steps: must be >= 0, got -3"),
    "distill.optimizer.beta1": (1.5, "distill.optimizer.beta1: must be < 1, got 1.5"),
    "distill.optimizer.weight_decay": (-1.0, "distill.optimizer.weight_decay"),
    "distill.optimizer.max_grad_norm": (0.0, "distill.optimizer.max_grad_norm: must be > 0, got 0.0"),
    "distill.teacher_optimizer.lr": (0.0, "distill.teacher_optimizer.lr: must be > 0, got 0.0"),
    "teacher.finetune.optimizer.lr": (-1.0, "teacher.finetune.optimizer.lr: must be > 0, got -1.0"),
    "distill.kd_weight": (-1.0, "distill.kd_weight: must be >= 0, got -1.0"),
    "distill.ce_weight": (-0.5, "distill.ce_weight: must be >= 0 or 'balanced', got -0.5"),
    "distill.projection": ("per_pair", "distill.projection: per_pair is for match_embedding"),
    "distill.relation_heads": (4, "distill.relation_heads: is for match_attention"),
    "seed": (-1, "seed: must be >= 0, got -1"),
    "parent.seed": (-1, "parent.seed: must be >= 0, got -1"),
}


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_that_cannot_be_is_refused(path):
    value, message = RECIPES[path]
    with pytest.raises(ConfigError) as caught:
        check(Resolver().pin(override(Cell(), {path: value})))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grad_accum_steps": 3}, "--grad-accum-steps: distill.batch_size, 8, cannot be cut into 3 parts"),
        ({"grad_accum_steps": 0}, "--grad-accum-steps: must be >= 1, got 0"),
        ({"num_workers": -1}, "--num-workers: must be >= 0, got -1"),
        ({"log_every": 0}, "--log-every: must be >= 1, got 0"),
        ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds: must be >= 0, got -1.0"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        check_execution(Execution(**flags), [Cell()])
    assert str(caught.value).startswith(message)


def test_one_budget_a_cell_and_its_source_its_own():
    refuse_two_budgets({"distill.max_tokens": 1000, "parent.distill.max_steps": 4})
    with pytest.raises(ConfigError, match=r"parent.distill.max_tokens and parent.distill.max_steps: give one"):
        refuse_two_budgets({"parent.distill.max_tokens": 1000, "parent.distill.max_steps": 4})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_teacher_that_is_trained_too_is_paid_for_in_whatever_order_cells_are_pinned(order):
    base = override(Cell(), {"distill.max_flops": 1e13, "distill.seq_len": 64, "distill.batch_size": 2})
    cells = [base, override(base, {"distill.teacher_optimizer.lr": 1e-4})]
    pins = Resolver()
    steps = {place: pins.pin(cells[place]).distill.max_steps for place in order}
    assert steps[0] > 1.5 * steps[1]
