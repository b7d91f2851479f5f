"""Training of sparse students: masked weights stay zero, and count nowhere."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from distilled import batch, llama, student_of
from families import CASES, logits, model_of
from torch import Tensor
from trained import QUICK, RECIPE, Stop, small_student, small_teacher

from lit_prune.config import Distill, Lora, Optimizer
from lit_prune.distill.module import Distiller
from lit_prune.distill.train import train
from lit_prune.distill.trainable import trained_part
from lit_prune.models.linears import linears_of
from lit_prune.pruning.masks import apply_masks, check_zero

NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
DECAY = Optimizer(lr=3e-2, weight_decay=0.5, warmup_steps=1, max_grad_norm=0.1)
PARTS = [
    pytest.param({}, id="all"),
    pytest.param({"train_last_layers": 1}, id="last"),
    pytest.param({"lora": Lora(rank=4, alpha=8.0, dropout=0.1)}, id="lora", marks=NEEDS_PEFT),
]


def drawn(model: Any) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {name: torch.rand(module.weight.shape, generator=draw) < 0.4 for name, module in linears_of(model)}


def sparse_student() -> tuple[Any, dict[str, Tensor]]:
    student = small_student()
    masks = drawn(student)
    apply_masks(student, masks)
    return student, masks


def trained(tokens: Path, folder: Path, stop_at: int | None = None, accumulate: int = 1, **part: Any) -> Any:
    def on_progress(step: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stop

    folder.mkdir(exist_ok=True)
    student, masks = sparse_student()
    train(
        student, small_teacher(), dataclasses.replace(RECIPE, optimizer=DECAY, **part), tokens, folder, seed=0,
        execution=dataclasses.replace(QUICK, grad_accum_steps=accumulate), on_progress=on_progress, masks=masks,
    )  # fmt: skip
    return student


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("part", PARTS)
def test_masked_weights_stay_zero_and_a_resumed_run_is_the_uninterrupted_one(
    text_tokens: Path, tmp_path: Path, part: dict[str, Any], accumulate: int
) -> None:
    before, masks = sparse_student()
    whole = trained(text_tokens, tmp_path / "whole", accumulate=accumulate, **part)
    check_zero(whole, masks, "trained")
    last = max(masks)
    assert not torch.equal(whole.get_parameter(last), before.get_parameter(last))
    with pytest.raises(Stop):
        trained(text_tokens, tmp_path / "cut", 4, accumulate, **part)
    resumed = trained(text_tokens, tmp_path / "cut", accumulate=accumulate, **part)
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


def test_masked_gradients_count_in_no_norm_and_move_no_moment() -> None:
    """Against one step of AdamW by hand, in which the gradients of pruned weights are left out."""
    student, distill = student_of(), Distill(ce_weight=1.0, optimizer=DECAY, max_steps=3)
    masks = drawn(student)
    apply_masks(student, masks)
    twin = copy.deepcopy(student)
    module = Distiller(student, llama(), distill, masks=masks)
    optimizer = module.configure_optimizers()["optimizer"]
    module.objective(*batch())["loss"].backward()
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer)
    Distiller(twin, llama(), distill).objective(*batch())["loss"].backward()
    kept = {name: masks.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in twin.named_parameters()}
    norm = torch.cat([p.grad[kept[name]] for name, p in twin.named_parameters()]).norm()
    assert module.terms["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    lr = optimizer.param_groups[0]["lr"]
    optimizer.step()
    for name, parameter in twin.named_parameters():
        gradient = torch.where(kept[name], parameter.grad, 0) * min(1, 0.1 / (norm.item() + 1e-6))
        decay = 1 - lr * 0.5 if parameter.ndim > 1 else 1.0
        expected = parameter * decay - lr * gradient / (gradient.abs() + 1e-8)  # the first step of Adam: g / |g|
        torch.testing.assert_close(student.get_parameter(name), expected, rtol=1e-3, atol=1e-5)
    for name, kept_weights in masks.items():
        state = optimizer.state[student.get_parameter(name)]
        assert not state["exp_avg"][~kept_weights].any()
        assert not state["exp_avg_sq"][~kept_weights].any()


@NEEDS_PEFT
@pytest.mark.parametrize("name", CASES)
def test_masked_adapters_are_merged_into_the_model_that_was_trained(name: str) -> None:
    model = copy.deepcopy(model_of(name))
    masks = drawn(model)
    apply_masks(model, masks)
    before = logits(model)
    with trained_part(model, Distill(lora=Lora(rank=4, alpha=8.0, dropout=0.1)), masks):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        model.eval()
        adapted = logits(model)
        assert not torch.allclose(adapted, before, atol=1e-2)
    check_zero(model, masks, name)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=1e-4)
