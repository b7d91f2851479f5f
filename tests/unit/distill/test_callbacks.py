"""Callbacks during a run: progress, history, divergence."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
import pytest
import torch
from distilled import gradients
from trained import BATCH, QUICK, RECIPE, SEQ_LEN, STEPS, equal, rows, run, small_student, small_teacher

from lit_prune.config import Optimizer
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill.callbacks import Diverged
from lit_prune.distill.module import Distiller
from lit_prune.distill.train import train


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_is_told_once_with_the_newest_row(text_tokens, tmp_path, accumulate):
    reported = []
    how = dataclasses.replace(QUICK, grad_accum_steps=accumulate)
    train(
        small_student(), small_teacher(), RECIPE, text_tokens, tmp_path, seed=0, execution=how,
        on_progress=lambda step, row: reported.append((step, row.get("step"))),
    )  # fmt: skip
    newest = [None, None, 3, 3, 3, 6, 7]
    assert reported == list(zip(range(1, STEPS + 1), newest, strict=True))


def test_a_row_is_the_mean_of_its_steps(text_tokens, tmp_path):
    run(text_tokens, tmp_path / "each", log_every=1)
    run(text_tokens, tmp_path / "some", log_every=3)
    each, some = rows(tmp_path / "each"), rows(tmp_path / "some")
    assert each["step"].tolist() == list(range(1, STEPS + 1))
    assert some["step"].tolist() == [3, 6, 7]
    for name in ("loss", "ce_loss", "kd_loss", "hidden_loss", "grad_norm"):
        means = [each[name][a:b].mean() for a, b in ((0, 3), (3, 6), (6, 7))]
        assert some[name].tolist() == pytest.approx(means, rel=1e-5)


def test_the_first_row_is_of_the_first_batch_and_its_gradient_before_clipping(text_tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, alpha=0.0, optimizer=Optimizer(max_grad_norm=1e-3))
    run(text_tokens, tmp_path, recipe=recipe, log_every=1)
    data = RetrainingData(text_tokens, seq_len=SEQ_LEN, batch_size=BATCH, max_steps=STEPS, seed=0)
    first = next(iter(data.train_dataloader()))
    module = Distiller(small_student(), small_teacher(), recipe)
    loss = module.objective(first["input_ids"], first["labels"])["loss"]
    norm = torch.stack([g.norm() for g in gradients(module, loss)]).norm()
    row = rows(tmp_path).iloc[0]
    assert (row["loss"], row["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loss_that_is_no_number_stops_the_run(text_tokens, tmp_path, precision):
    broken = small_student()
    broken.lm_head.weight.data[3, 3] = float("nan")
    recipe = dataclasses.replace(RECIPE, precision=precision)
    with pytest.raises(Diverged, match=r"loss.* step 3"):
        run(text_tokens, tmp_path, student=broken, recipe=recipe, checkpoint_seconds=1e9)
    assert rows(tmp_path)["loss"].isna().tolist() == [True]


def test_a_run_that_diverges_on_the_way_stops_at_the_next_row(text_tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer=Optimizer(lr=1e30, min_lr=1e30, warmup_steps=0))
    with pytest.raises(Diverged, match="step 3"):
        run(text_tokens, tmp_path, recipe=recipe, checkpoint_seconds=1e9)


@pytest.mark.parametrize(("place", "word"), [("loss", "loss"), ("weight", "weight"), ("moment", "optimizer")])
@pytest.mark.parametrize("step", [3, STEPS])
def test_no_checkpoint_holds_a_number_that_is_not_finite(whole, tmp_path, place, word, step):
    """The poison comes in before the checkpoint of the step; a healthy run in the same folder starts clean."""
    saved = []

    class Poison(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            if trainer.global_step > 1:
                saved.append(torch.load(tmp_path / "last.ckpt")["global_step"])
            if trainer.global_step == step:
                parameter = next(module.parameters())
                moment = trainer.optimizers[0].state[parameter]["exp_avg_sq"]
                poisoned = {"loss": outputs["loss"], "weight": parameter.data, "moment": moment}[place]
                poisoned[(0,) * poisoned.dim()] = float("inf")

    with pytest.raises(Diverged, match=rf"{word}.* step {step}\b"):
        run(whole.tokens, tmp_path, log_every=100, callbacks=[Poison()])
    assert saved == list(range(1, step))
    assert not (tmp_path / "last.ckpt").exists()
    if step < STEPS and place == "weight":
        assert equal(run(whole.tokens, tmp_path), whole(0.0, 1).student)


def test_weights_that_the_last_update_breaks_are_told_at_the_end(text_tokens, tmp_path):
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step == STEPS:
                next(module.parameters()).data[0, 0] = float("nan")

    with pytest.raises(Diverged, match=rf"weight.* step {STEPS}\b"):
        run(text_tokens, tmp_path, checkpoint_seconds=1e9, callbacks=[Poison()])
