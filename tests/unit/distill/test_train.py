"""Training runs: repeated, interrupted and resumed, diverging, accumulated."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from distilled import llama, student_of
from refusals import refuses
from safetensors import safe_open
from trained import RECIPE, SEQ_LEN, close, equal, rows, run, small_student, written
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.config import Distill, Execution, Lora, Optimizer
from lit_prune.distill.micro_batches import activation_bytes, micro_batches


@pytest.fixture(scope="module")
def full_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 full blocks of text of 47 words, in which each word has two successors."""
    return written(tmp_path_factory.mktemp("full"), 22 * SEQ_LEN)


def test_the_same_seed_gives_the_same_weights_and_history_bit_for_bit(whole, tmp_path):
    first = whole(0.1, 1)
    assert equal(first.student, run(whole.tokens, tmp_path / "again", dropout=0.1))
    pd.testing.assert_frame_equal(rows(first.folder), rows(tmp_path / "again"), check_exact=True)
    assert not equal(first.student, run(whole.tokens, tmp_path / "other", dropout=0.1, seed=1))
    assert not equal(first.student, whole(0.0, 1).student)


@pytest.mark.parametrize(
    ("stops", "dropout", "accumulate"),
    [((1,), 0.0, 1), ((2,), 0.1, 1), ((3, 4), 0.1, 1), ((2, 6), 0.1, 2), ((7, 7), 0.0, 2)],
)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path, stops, dropout, accumulate):
    """A step is told before its checkpoint is written."""
    uninterrupted = whole(dropout, accumulate)
    for stop in stops:
        run(whole.tokens, tmp_path, dropout=dropout, grad_accum_steps=accumulate, stop_at=stop)
        assert (tmp_path / "last.ckpt").exists() == (stop > 1)
    resumed = run(whole.tokens, tmp_path, dropout=dropout, grad_accum_steps=accumulate)
    assert equal(resumed, uninterrupted.student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(uninterrupted.folder), check_exact=True)


@pytest.mark.slow
def test_workers_that_read_ahead_lose_and_repeat_nothing(whole, tmp_path):
    for stop in (2, 5):
        run(whole.tokens, tmp_path, stop_at=stop, num_workers=2)
    assert equal(run(whole.tokens, tmp_path, num_workers=2), whole(0.0, 1).student)


def test_a_run_that_was_over_when_it_was_interrupted_is_found_as_it_was(whole, tmp_path):
    over = whole(0.0, 1)
    folder = shutil.copytree(over.folder, tmp_path / "run")
    assert equal(run(whole.tokens, folder), over.student)
    pd.testing.assert_frame_equal(rows(folder), rows(over.folder), check_exact=True)


def test_a_checkpoint_is_never_of_half_a_step(whole, tmp_path):
    """The time for one comes between the two micro-batches of step 3, whose gradients no checkpoint holds."""
    slow, calls = small_student(dropout=0.1), iter(range(1, 100))
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.6) if next(calls) == 5 else None)
    run(whole.tokens, tmp_path, grad_accum_steps=2, student=slow, stop_at=3, checkpoint_seconds=0.5)
    assert equal(run(whole.tokens, tmp_path, grad_accum_steps=2, dropout=0.1), whole(0.1, 2).student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(whole(0.1, 2).folder), check_exact=True)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_may_go_on_in_other_micro_batches(whole, tmp_path, before, after):
    run(whole.tokens, tmp_path, stop_at=4, grad_accum_steps=before)
    resumed = run(whole.tokens, tmp_path, grad_accum_steps=after)
    close(resumed, whole(0.0, 1).student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(whole(0.0, 1).folder), rtol=1e-4)


def test_no_half_written_checkpoint_is_left(text_tokens, tmp_path):
    run(text_tokens, tmp_path, stop_at=2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}
    run(text_tokens, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "metrics.csv"}


def test_a_checkpoint_holds_the_student_and_the_projection_and_no_teacher(text_tokens, tmp_path):
    student = run(text_tokens, tmp_path, stop_at=2)
    saved = torch.load(tmp_path / "last.ckpt")["state_dict"]
    ours = {f"student.{name}" for name in student.state_dict()}
    assert set(saved) == ours | {"projection.weight", "projection.bias"}
    assert saved["projection.weight"].shape == (32, 24)


def test_a_trained_student_is_saved_without_the_projection(text_tokens, tmp_path):
    student = run(text_tokens, tmp_path / "run")
    student.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    assert equal(LlamaForCausalLM.from_pretrained(tmp_path / "model"), student)
    assert not student.training


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_the_same_step(whole, accumulate):
    together, cut = whole(0.0, 1), whole(0.0, accumulate)
    close(cut.student, together.student)
    pd.testing.assert_frame_equal(rows(cut.folder), rows(together.folder), rtol=1e-4)


@pytest.mark.parametrize(
    ("batch", "seq_len", "precision", "parts"),
    [
        (4, 512, "32-true", 2),  # 0.98 MiB a token: room for 2 sequences
        (8, 512, "32-true", 4),
        (6, 256, "32-true", 2),  # room for 4 sequences, of which 3 make equal parts
        (5, 512, "32-true", 5),
        (8, 4096, "32-true", 8),  # one sequence takes 4 GiB and cannot be cut
        (6, 352, "32-true", 3),
        (6, 352, "bf16-mixed", 2),  # 0.74 MiB a token: room for 3 sequences instead of 2
    ],
)
def test_micro_batches_are_the_fewest_equal_ones_whose_activations_fit(batch, seq_len, precision, parts):
    sizes = {"hidden_size": 2048, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 8}
    config = LlamaConfig(num_hidden_layers=9, **sizes)
    assert activation_bytes(config, "32-true") == 9 * 7 * (2048 + 2048) * 4
    distill = Distill(batch_size=batch, seq_len=seq_len, precision=precision)
    assert micro_batches(distill, config, Execution(accelerator="cpu")) == parts


def test_a_batch_that_cannot_be_cut_is_refused(text_tokens, tmp_path):
    with refuses("distill.batch_size", 4):
        run(text_tokens, tmp_path, grad_accum_steps=3)


GOLDEN_CURVES = {
    "pretraining": [3.488, 2.069, 1.058, 0.6326, 0.452],
    "distillation": [0.09237, 0.05058, 0.03777, 0.03234, 0.02982],
}
"""Mean losses of 12 steps each. They may change with how a run is carried out: data order, optimizer, schedule."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_CURVES)
def test_a_golden_curve(full_tokens, tmp_path, name):
    """Cross-entropy begins near ln 48 = 3.87, and 22 blocks are soon known by heart."""
    student = student_of()
    torch.manual_seed(0)
    student.apply(student._init_weights)
    recipe = Distill(
        ce_weight=float(name == "pretraining"), kd_weight=float(name == "distillation"), seq_len=SEQ_LEN, batch_size=8,
        max_steps=60,
        optimizer=Optimizer(lr=1e-2, min_lr=1e-3, warmup_steps=10),
    )  # fmt: skip
    run(full_tokens, tmp_path, recipe=recipe, student=student, teacher=llama(), log_every=12, checkpoint_seconds=1000.0)
    curve = rows(tmp_path)["loss"].tolist()
    assert curve == sorted(curve, reverse=True)
    assert curve == pytest.approx(GOLDEN_CURVES[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_train_the_same_student_to_rounding_and_are_left_as_they_were(text_tokens, tmp_path):
    recipe = dataclasses.replace(
        RECIPE, alpha=0.0, match_embedding=False, match_mlp_input=(), match_layer_output=(), max_steps=3
    )
    plain = run(text_tokens, tmp_path / "plain", recipe=recipe)
    compiled = run(text_tokens, tmp_path / "compiled", recipe=recipe, compile=True)
    close(compiled, plain)
    assert not any(module._compiled_call_impl for module in compiled.modules())


@pytest.mark.parametrize("name", ["a ratio of L_is", "LoRA", "a teacher trained too"])
def test_activation_checkpointing_changes_no_bit(text_tokens, tmp_path, name):
    recipe = {
        "a ratio of L_is": RECIPE, "LoRA": dataclasses.replace(RECIPE, lora=Lora(rank=2)),
        "a teacher trained too": dataclasses.replace(RECIPE, teacher_optimizer=Optimizer()),
    }[name]  # fmt: skip
    plain = run(text_tokens, tmp_path / "plain", recipe=recipe, dropout=0.1, grad_accum_steps=2)
    again = run(
        text_tokens, tmp_path / "again", recipe=recipe, dropout=0.1, grad_accum_steps=2, activation_checkpointing=True
    )
    assert equal(again, plain)
    pd.testing.assert_frame_equal(rows(tmp_path / "again"), rows(tmp_path / "plain"), check_exact=True)
    assert all("forward" not in vars(layer) for layer in again.model.layers)
