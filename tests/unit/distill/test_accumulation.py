"""Gradient accumulation gives the same optimizer step, however unevenly the scored tokens are spread."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from distilled import ALL_STATES, VOCAB, llama, student_of

from lit_prune.config import Distill, Execution, Lora, Optimizer
from lit_prune.data.retraining import RetrainingData, SeededOrder, StepParts, StepSampler
from lit_prune.data.tokens import IGNORED
from lit_prune.distill.cotrain import JointDistiller
from lit_prune.distill.module import Distiller
from lit_prune.distill.train import train

RAGGED = (11, 1, 4, 0)
"""Scored tokens of the four sequences of a step: the mean of the sequences' means counts the second 11 times."""

OBJECTIVES = {
    "logits": Distill(),
    "clm": Distill(ce_weight=1.0, kd_weight=0.0),
    "top-k": Distill(top_k=5, logit_loss="reverse_kld", temperature=2.0, scale_by_temperature_squared=True),
    "states": Distill(ce_weight=0.3, alpha=0.2, **ALL_STATES),
    "relations": Distill(alpha="dynamic", match_attention=("last:last",), relation_heads=2),
    "dynamic": Distill(alpha="dynamic", **ALL_STATES),
    "balanced": Distill(ce_weight="balanced", top_k=5),
    "both ratios": Distill(
        alpha="dynamic", ce_weight="balanced", match_attention=("0:0",), relation_heads=4, **ALL_STATES
    ),
    "balanced by states alone": Distill(ce_weight="balanced", kd_weight=0.0, alpha=0.5, **ALL_STATES),
    "alongside": Distill(ce_weight="balanced", alpha="dynamic", teacher_optimizer=Optimizer(), **ALL_STATES),
}


def step() -> tuple[torch.Tensor, torch.Tensor]:
    """Four sequences of 12 ids and their labels."""
    ids = torch.randint(0, VOCAB, (4, 12), generator=torch.Generator().manual_seed(7))
    labels = ids.clone()
    for row, scored in zip(labels, RAGGED, strict=True):
        row[scored + 1 :] = IGNORED
    return ids, labels


def gradients(module: Distiller, parts: int) -> dict[str, torch.Tensor]:
    """The gradients of a step in so many micro-batches, accumulated as a trainer does."""
    ids, labels = step()
    for i, (some_ids, some_labels) in enumerate(zip(ids.chunk(parts), labels.chunk(parts), strict=True)):
        part = {"input_ids": some_ids, "labels": some_labels, "mean_scored": sum(RAGGED) / parts}
        module.backward(module.training_step(part, i) / parts)
    module.on_before_optimizer_step(None)
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_have_the_gradient_of_the_whole_step(name):
    distill = OBJECTIVES[name]
    kind = Distiller if distill.teacher_optimizer is None else JointDistiller
    modules = {parts: kind(student_of(), llama(), distill, parts) for parts in (1, 2, 4)}
    for module in modules.values():
        module.projection.load_state_dict(modules[1].projection.state_dict())
    whole = gradients(modules[1], 1)
    for parts in (2, 4):
        cut = gradients(modules[parts], parts)
        assert set(cut) == set(whole)
        for key, gradient in whole.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(cut[key], gradient, rtol=1e-5, atol=1e-5 * scale, msg=key)
        terms, expected = modules[parts].terms, modules[1].terms
        assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_the_denominator_is_the_number_of_scored_tokens_of_the_step():
    """By hand: the gradient of the sum of the tokens' cross-entropies over their number, in float64."""
    ids, labels = step()
    student = student_of()
    module = Distiller(copy.deepcopy(student), None, Distill(ce_weight=1.0, kd_weight=0.0), 4)
    found = gradients(module, 4)
    student.double()
    log_p = student(input_ids=ids).logits[:, :-1].log_softmax(-1)
    scored = labels[:, 1:] != IGNORED
    nats = -log_p.gather(-1, ids[:, 1:, None])[..., 0][scored]
    assert len(nats) == sum(RAGGED)
    (nats.sum() / len(nats)).backward()
    assert module.terms["loss"].item() == pytest.approx(nats.mean().item(), rel=1e-6)
    for name, parameter in student.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(found[f"student.{name}"].double(), parameter.grad, rtol=1e-4, atol=1e-5 * scale)


# Whole runs, whose batches come from the data


@pytest.fixture
def ragged(numbered: Any) -> Path:
    """Four blocks of 8 tokens, of which the last has 2."""
    return numbered(train=26)


RUNS = {
    "both ratios": Distill(alpha="dynamic", ce_weight="balanced", **ALL_STATES),
    "lora": Distill(alpha="dynamic", lora=Lora(rank=2), **ALL_STATES),
    "last": Distill(alpha="dynamic", ce_weight="balanced", train_last_layers=1, match_layer_output=("last:last",)),
    "alongside": Distill(ce_weight=0.5, teacher_optimizer=Optimizer(lr=1e-3, warmup_steps=1)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_micro_batches_is_the_same_run(ragged, tmp_path, name):
    if name == "lora":
        pytest.importorskip("peft")
    recipe = dataclasses.replace(
        RUNS[name], seq_len=8, batch_size=4, max_steps=4, optimizer=Optimizer(lr=1e-3, warmup_steps=1)
    )
    students, histories = [], []
    for parts in (1, 2, 4):
        student, folder = student_of(), tmp_path / str(parts)
        folder.mkdir()
        how = Execution(accelerator="cpu", grad_accum_steps=parts, checkpoint_seconds=1e9, log_every=1)
        train(student, llama(), recipe, ragged, folder, seed=0, execution=how, on_progress=lambda *_: None)
        students.append(student.state_dict())
        histories.append(pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second"))
    for student, history in zip(students[1:], histories[1:], strict=True):
        pd.testing.assert_frame_equal(history[histories[0].columns], histories[0], rtol=1e-4)
        for key, value in student.items():
            torch.testing.assert_close(value, students[0][key], rtol=1e-4, atol=2e-5, msg=key)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_batch_carries_the_scored_tokens_of_its_step(ragged, accumulate, workers):
    """Steps of four blocks with 7, 7, 7 and 1 scored tokens: each step has them all."""
    data = RetrainingData(
        ragged, seq_len=8, batch_size=4, max_steps=3, seed=0, grad_accum_steps=accumulate, num_workers=workers,
    )  # fmt: skip
    batches = list(data.train_dataloader())
    assert [batch["mean_scored"] for batch in batches] == [22 / accumulate] * 3 * accumulate
    counts = [(batch["labels"][:, 1:] != IGNORED).sum().item() for batch in batches]
    assert [sum(counts[i : i + accumulate]) for i in range(0, len(counts), accumulate)] == [22] * 3


def test_ranks_divide_by_the_same_number(ragged):
    data = RetrainingData(ragged, seq_len=8, batch_size=4, max_steps=1, seed=0)
    parts = StepParts(data.sequences)
    found = []
    for rank in range(2):
        mine, everyone = SeededOrder(4, 4, 0, 0, rank, 2), SeededOrder(4, 4, 0)
        found += [parts[part] for part in StepSampler(mine, everyone, 4, 1)]
    assert sorted((batch["labels"][:, 1:] != IGNORED).sum().item() for batch in found) == [1, 7, 7, 7]
    assert [batch["mean_scored"] for batch in found] == [22 / 4] * 4
