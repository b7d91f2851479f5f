"""Impossible recipes and flags are refused in one line before anything is computed."""

from __future__ import annotations

import pytest
from refusals import refuses

from lit_prune.config import Cell, DynamicLoading, Execution, Lora
from lit_prune.config.overrides import override, refuse_two_budgets
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.validate import check, check_execution

RECIPES = {
    "distill.optimizer.lr": (0.0, "> 0"),
    "distill.optimizer.min_lr": (-1.0, ">= 0"),
    "distill.optimizer.warmup_steps": (-3, ">= 0"),
    "distill.optimizer.beta1": (1.5, "< 1"),
    "distill.optimizer.weight_decay": (-1.0, ">= 0"),
    "distill.optimizer.max_grad_norm": (0.0, "> 0"),
    "distill.teacher_optimizer.lr": (0.0, "> 0"),
    "teacher.finetune.optimizer.lr": (-1.0, "> 0"),
    "distill.kd_weight": (-1.0, ">= 0"),
    "distill.ce_weight": (-0.5, ">= 0 or 'balanced'"),
    "distill.projection": ("per_pair", "match_embedding"),
    "distill.relation_heads": (4, "match_attention"),
    "seed": (-1, ">= 0"),
    "parent.seed": (-1, ">= 0"),
}
"""Field -> a value that it cannot have, and what stands in the error: the rule, or the field that it needs."""


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_that_cannot_be_is_refused(path):
    value, rule = RECIPES[path]
    with refuses(path, rule):
        check(Resolver().pin(override(Cell(), {path: value})))


@pytest.mark.parametrize("place", ["distill.optimizer", "distill.teacher_optimizer", "teacher.finetune.optimizer"])
def test_a_learning_rate_that_decays_to_a_higher_one_is_refused(place):
    """The default min_lr is 1e-5 or, for teachers, 1e-4."""
    with refuses(f"{place}.min_lr", f"<= {place}.lr", "1e-06"):
        check(Resolver().pin(override(Cell(), {f"{place}.lr": 1e-6})))
    check(Resolver().pin(override(Cell(), {f"{place}.lr": 1e-6, f"{place}.min_lr": 1e-6})))


@pytest.mark.parametrize(
    ("flags", "field", "values"),
    [
        ({"grad_accum_steps": 3}, "--grad-accum-steps", ["distill.batch_size", 8, 3]),
        ({"grad_accum_steps": 0}, "--grad-accum-steps", [">= 1", 0]),
        ({"devices": 3}, "--devices", ["distill.batch_size", 8, 3]),
        ({"devices": 0}, "--devices", [">= 1", 0]),
        ({"strategy": "fsdp"}, "--strategy", ["ddp on one device", "fsdp"]),
        ({"strategy": "fsdp", "devices": 2, "compile": True}, "--strategy", ["ddp with --compile", "fsdp"]),
        ({"devices": 4, "grad_accum_steps": 4}, "--grad-accum-steps", ["distill.batch_size", 2, 4]),
        ({"num_workers": -1}, "--num-workers", [">= 0", -1]),
        ({"log_every": 0}, "--log-every", [">= 1", 0]),
        ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds", [">= 0", -1.0]),
    ],
)
def test_a_flag_that_cannot_be_is_refused(flags, field, values):
    with refuses(field, *values):
        check_execution(Execution(**flags), [Cell()])


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"distill.lora": Lora(quantize="nf4")}, "lora.quantize"),
     ({"distill.dynamic_loading": DynamicLoading()}, "dynamic_loading")],
)  # fmt: skip
def test_a_recipe_that_cannot_be_sharded_is_refused(changes, field):
    with refuses(f"distill.{field}", "null with --strategy fsdp"):
        check_execution(Execution(strategy="fsdp", devices=2), [override(Cell(), changes)])


def test_one_budget_a_cell_and_its_source_its_own():
    refuse_two_budgets({"distill.max_tokens": 1000, "parent.distill.max_steps": 4})
    with refuses("parent.distill.max_tokens", "parent.distill.max_steps"):
        refuse_two_budgets({"parent.distill.max_tokens": 1000, "parent.distill.max_steps": 4})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_teacher_that_is_trained_too_is_paid_for_in_whatever_order_cells_are_pinned(order):
    base = override(Cell(), {"distill.max_flops": 1e13, "distill.seq_len": 64, "distill.batch_size": 2})
    cells = [base, override(base, {"distill.teacher_optimizer.lr": 1e-4})]
    pins = Resolver()
    steps = {place: pins.pin(cells[place]).distill.max_steps for place in order}
    assert steps[0] > 1.5 * steps[1]
