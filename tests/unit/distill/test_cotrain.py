"""The teacher trains alongside the student: each with its own loss, optimizer, schedule and clipping."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from refusals import refuses
from torch import nn

from lit_prune.config import Distill, Execution, Optimizer
from lit_prune.config.overrides import override
from lit_prune.distill.cotrain import JointDistiller
from lit_prune.distill.module import Distiller
from lit_prune.distill.optim import learning_rate
from lit_prune.distill.train import train
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.stages import evaluate
from lit_prune.pipeline.validate import check_models

THEIRS = Optimizer(lr=2e-3, min_lr=5e-4, warmup_steps=3, weight_decay=0.05, max_grad_norm=0.5, beta1=0.8)
DISTILL = Distill(
    seq_len=32, batch_size=4, max_steps=8, optimizer=Optimizer(lr=1e-3, warmup_steps=2), teacher_optimizer=THEIRS
)
QUICK = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)


class Stop(Exception):
    """The interruption."""


@pytest.fixture
def tokens(tiny_cell: Any, tiny_runner: Any) -> Path:
    return artifacts.tokens(tiny_cell, tiny_runner.ctx)


def noisy(model: Any, seed: int = 1) -> Any:
    """A copy with other weights: a student of the teacher's shape."""
    copied, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in copied.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return copied


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[0, 5] = -100
    return {"input_ids": ids, "labels": labels}


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_each_gets_the_gradient_of_its_own_loss_and_no_other(tiny_llama):
    teacher, student = tiny_llama, noisy(tiny_llama)
    JointDistiller(student, teacher, DISTILL).training_step(batch(), 0).backward()
    alone_teacher, alone_student = noisy(teacher, 5), noisy(teacher)
    alone_teacher.load_state_dict(teacher.state_dict())
    alone_teacher(**batch()).loss.backward()
    Distiller(alone_student, noisy(teacher, 6), DISTILL)
    module = Distiller(alone_student, alone_teacher, dataclasses.replace(DISTILL, teacher_optimizer=None))
    module.training_step(batch(), 0).backward()
    for ours, theirs in ((teacher, alone_teacher), (student, alone_student)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_the_teachers_loss_is_a_term_of_its_own_and_no_part_of_the_students(tiny_llama):
    module = JointDistiller(noisy(tiny_llama), tiny_llama, DISTILL)
    both = module.training_step(batch(), 0)
    clm = tiny_llama(**batch()).loss
    torch.testing.assert_close(module.terms["teacher_ce_loss"], clm)
    torch.testing.assert_close(both - module.terms["loss"], clm)
    torch.testing.assert_close(module.terms["loss"], module.terms["kd_loss"])


def test_each_part_has_its_optimizer_and_its_schedule(tiny_llama):
    module = JointDistiller(noisy(tiny_llama), tiny_llama, DISTILL)
    configured = module.configure_optimizers()
    adamw, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    ours, theirs = adamw.param_groups[:2], adamw.param_groups[2:]
    assert {id(p) for g in ours for p in g["params"]} == {id(p) for p in module.student.parameters()}
    assert {id(p) for g in theirs for p in g["params"]} == {id(p) for p in tiny_llama.parameters()}
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.1, 0.0, 0.05, 0.0]
    assert [g["betas"] for g in adamw.param_groups] == [(0.9, 0.95)] * 2 + [(0.8, 0.95)] * 2
    for step in range(8):
        rates = [learning_rate(optim, step, 8) for optim in (DISTILL.optimizer, THEIRS)]
        assert [g["lr"] for g in adamw.param_groups] == pytest.approx([rates[0]] * 2 + [rates[1]] * 2)
        adamw.step()
        schedule.step()


def test_each_part_is_clipped_by_its_own_norm(tiny_llama):
    module = JointDistiller(noisy(tiny_llama), tiny_llama, DISTILL)
    for parameter in module.student.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    for parameter in tiny_llama.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    module.configure_gradient_clipping(None)
    assert all((p.grad == 1e-6).all() for p in module.student.parameters())
    norm = torch.cat([p.grad.flatten() for p in tiny_llama.parameters()]).norm().item()
    assert norm == pytest.approx(0.5, rel=1e-4)
    count = sum(p.numel() for p in module.student.parameters())
    assert module.terms["grad_norm"].item() == pytest.approx(1e-6 * count**0.5, rel=1e-4)


def test_a_batch_without_a_scored_token_costs_nothing(tiny_llama):
    module = JointDistiller(noisy(tiny_llama), tiny_llama, DISTILL)
    empty = {"input_ids": batch()["input_ids"], "labels": torch.full((2, 12), -100)}
    assert module.training_step(empty, 0).item() == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_learn_whatever_the_arithmetic(tokens, tmp_path, tiny_llama, precision):
    """Under autocast a pass without gradient must not leave its casts of the weights to the one with."""
    teacher, student = noisy(tiny_llama, 7), noisy(tiny_llama)
    recipe = dataclasses.replace(DISTILL, precision=precision)
    how = {"seed": 0, "execution": QUICK, "on_progress": lambda step, row: None}
    train(student, teacher, recipe, tokens, tmp_path, **how)
    for before, after in ((noisy(tiny_llama, 7), teacher), (noisy(tiny_llama), student)):
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["teacher_ce_loss"].iloc[-1] < history["teacher_ce_loss"].iloc[0]
    assert not teacher.training


def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tokens, tmp_path, tiny_llama):
    def run(folder: Path, stop_at: int | None = None) -> tuple[Any, Any]:
        def on_progress(step: int, row: dict[str, float]) -> None:
            if step == stop_at:
                raise Stop

        folder.mkdir(exist_ok=True)
        teacher, student = noisy(tiny_llama, 7), noisy(tiny_llama)
        train(student, teacher, DISTILL, tokens, folder, seed=0, execution=QUICK, on_progress=on_progress)
        return student, teacher

    whole = run(tmp_path / "whole")
    for stop in (4, 7):
        with pytest.raises(Stop):
            run(tmp_path / "cut", stop)
    assert all(same(a, b) for a, b in zip(whole, run(tmp_path / "cut"), strict=True))
    histories = [pd.read_csv(tmp_path / f / "metrics.csv").drop(columns="tokens_per_second") for f in ("whole", "cut")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_the_shared_teacher_of_other_cells_is_left_as_it_is(tiny_cell, tiny_runner):
    plain = {"distill.teacher_optimizer": THEIRS, "evaluation.num_validations": 1}
    requested = override(tiny_cell, plain)
    shared = tiny_runner.ctx.load(artifacts.teacher(requested, tiny_runner.ctx))
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    entries = [
        Entry("alongside", 0, requested, {}),
        Entry("none", 0, override(requested, {"distill.teacher_optimizer": None}), {}),
    ]
    tiny_runner.check(entry.cell for entry in entries)
    assert tiny_runner.run(entries) == 0
    assert tiny_runner.ctx.load(artifacts.teacher(requested, tiny_runner.ctx)) is shared
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())
    alongside, none = (tiny_runner.store.node(entry.cell, "cell").result for entry in entries)
    teacher_before = evaluate.sequence_losses(requested, tiny_runner.ctx, shared).mean
    assert alongside["teacher_lm_loss"] < teacher_before
    assert "teacher_lm_loss" not in none
    assert alongside["kd_loss_before"] == none["kd_loss_before"]
    assert alongside["kd_loss"] != none["kd_loss"]


def test_correcting_a_teacher_that_nothing_is_learned_from_is_refused(tiny_cell, tiny_llama):
    changes = {"distill.teacher_optimizer": THEIRS, "distill.ce_weight": 1.0, "distill.kd_weight": 0.0}
    with refuses("distill.teacher_optimizer"):
        check_models(override(tiny_cell, changes))
    with refuses("distill.teacher_optimizer"):
        JointDistiller(noisy(tiny_llama), tiny_llama, dataclasses.replace(DISTILL, ce_weight=1.0, kd_weight=0.0))
