"""Training on 2 and 4 ranks is training on one: losses, gradients, weights, resumption, and what goes wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ranks import on_ranks
from trained import QUICK, RECIPE, Stop, close, rows, small_student, small_teacher

from lit_prune.config import Distill, Lora, Optimizer
from lit_prune.distill.callbacks import Diverged
from lit_prune.distill.checkpoint_io import resumable
from lit_prune.distill.sharding import loading_device
from lit_prune.distill.train import train
from lit_prune.models.linears import linears_of
from lit_prune.parallel.group import agree, rank
from lit_prune.parallel.processes import RankFailed
from lit_prune.pruning.masks import apply_masks, check_zero
from lit_prune.store.integrity import SHARDS

LONG = dataclasses.replace(RECIPE, max_steps=20)
RECIPES = {
    "a ratio of L_is": LONG,
    "top-k": dataclasses.replace(LONG, alpha=0.0, match_embedding=False, match_mlp_input=(), match_layer_output=(),
                                 ce_weight="balanced", top_k=5, temperature=2.0),
    "LoRA": dataclasses.replace(LONG, lora=Lora(rank=2)),
    "a teacher trained alongside": dataclasses.replace(LONG, teacher_optimizer=Optimizer(lr=1e-3)),
    "a state alone": dataclasses.replace(LONG, alpha=1.0, ce_weight=0.0, kd_weight=0.0, match_embedding=False,
                                         match_layer_output=()),
    "cross-entropy": Distill(ce_weight=1.0, kd_weight=0.0, seq_len=16, batch_size=4, max_steps=20),
}  # fmt: skip


def run(
    tokens: Path, folder: Path, world: int, recipe: Distill = LONG, *, stop_at: int | None = None,
    sabotage: Any = lambda student: None, masks: Any = None, **execution: Any,
) -> Any:  # fmt: skip
    """Train on so many ranks; return the student and the teacher of rank 0.

    Other ranks start with a student of other weights, or with both models on the meta device if these are sharded.
    """
    how = dataclasses.replace(QUICK, log_every=1, **{"checkpoint_seconds": 1e9} | execution)

    def on_progress(step: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stop

    def call() -> Any:
        student, teacher = small_student(), small_teacher()
        for model in (student, teacher):
            model.to(loading_device(how))
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += rank()
        sabotage(student)
        train(student, teacher, recipe, tokens, folder, seed=0, execution=how, on_progress=on_progress, masks=masks)
        trained = [student] if recipe.teacher_optimizer is None else [student, teacher]
        for model in trained:
            torch.testing.assert_close(dict(model.state_dict()), agree(dict(model.state_dict())), rtol=0, atol=0)
        return student, teacher

    folder.mkdir(exist_ok=True)
    try:
        return on_ranks(world, call)
    except Stop:
        return None


@pytest.fixture(scope="module")
def alone(text_tokens, tmp_path_factory):
    """Each recipe on one rank: the folder and the models."""
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            folder = tmp_path_factory.mktemp("alone")
            made[name] = folder, run(text_tokens, folder, 1, RECIPES[name])
        return made[name]

    return of


STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


@STRATEGIES
@pytest.mark.parametrize(("name", "world"), [*((name, 2) for name in RECIPES), ("a ratio of L_is", 4)])
def test_ranks_train_as_one(alone, text_tokens, tmp_path, name, world, strategy):
    """The last sequence of the text is padded, so the ranks score different numbers of tokens."""
    folder, models = alone(name)
    found = run(text_tokens, tmp_path, world, RECIPES[name], strategy=strategy)
    for ours, theirs in zip(found, models, strict=True):
        close(ours, theirs)
    found, expected = rows(tmp_path), rows(folder)
    assert set(found) == set(expected)
    assert len(found) == 20
    pd.testing.assert_frame_equal(found[list(expected)], expected, rtol=1e-4)


def tie(student: Any) -> None:
    student.lm_head.weight = student.model.embed_tokens.weight


@pytest.mark.parametrize("recipe", ["a ratio of L_is", "a state alone"])
def test_sharded_layers_are_recomputed_and_embeddings_tied(text_tokens, tmp_path, recipe):
    how: dict[str, Any] = {"sabotage": tie, "activation_checkpointing": True, "grad_accum_steps": 2}
    one, _ = run(text_tokens, tmp_path / "one", 1, RECIPES[recipe], **how)
    two, _ = run(text_tokens, tmp_path / "two", 2, RECIPES[recipe], strategy="fsdp", **how)
    close(two, one)
    assert two.lm_head.weight is two.model.embed_tokens.weight
    pd.testing.assert_frame_equal(rows(tmp_path / "two"), rows(tmp_path / "one"), rtol=1e-4)


def test_sharded_layers_compute_in_bfloat16_and_are_float32(text_tokens, tmp_path):
    recipe, dtypes = dataclasses.replace(LONG, precision="bf16-mixed"), []

    def observe(student: Any) -> None:
        linear = student.model.layers[0].mlp.up_proj
        linear.register_forward_hook(lambda module, inputs, output: dtypes.append(module.weight.dtype))

    run(text_tokens, tmp_path / "one", 1, recipe)
    two, _ = run(text_tokens, tmp_path / "two", 2, recipe, strategy="fsdp", sabotage=observe)
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in two.parameters()} == {torch.float32}
    found, expected = rows(tmp_path / "two"), rows(tmp_path / "one")
    pd.testing.assert_frame_equal(found.drop(columns="grad_norm"), expected.drop(columns="grad_norm"), rtol=2e-2)


@pytest.mark.parametrize("recipe", ["a ratio of L_is", "LoRA"])
def test_pruned_weights_of_sharded_layers_stay_zero(text_tokens, tmp_path, recipe):
    draw = torch.Generator().manual_seed(3)
    masks = {name: torch.rand(part.weight.shape, generator=draw) < 0.4 for name, part in linears_of(small_student())}
    how: dict[str, Any] = {"masks": masks, "sabotage": lambda student: apply_masks(student, masks)}
    one, _ = run(text_tokens, tmp_path / "one", 1, RECIPES[recipe], **how)
    two, _ = run(text_tokens, tmp_path / "two", 2, RECIPES[recipe], strategy="fsdp", **how)
    check_zero(two, masks, "two")
    close(two, one)


@STRATEGIES
def test_ranks_accumulate_micro_batches(alone, text_tokens, tmp_path, strategy):
    folder, models = alone("a ratio of L_is")
    student, _ = run(text_tokens, tmp_path, 2, grad_accum_steps=2, strategy=strategy)
    close(student, models[0])
    pd.testing.assert_frame_equal(rows(tmp_path), rows(folder), rtol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        [("ddp", 2, 6), ("ddp", 1, 13), ("ddp", 4, None)],
        [("fsdp", 2, 6), ("fsdp", 1, 13), ("fsdp", 4, None)],
        [("fsdp", 4, 6), ("fsdp", 2, 13), ("ddp", 2, None)],
    ],
    ids=["ddp", "fsdp", "both"],
)
def test_a_run_may_go_on_on_another_number_of_ranks(alone, text_tokens, tmp_path, parts):
    folder, models = alone("a ratio of L_is")
    steps = []
    for strategy, world, stop_at in parts:
        student = run(text_tokens, tmp_path, world, strategy=strategy, stop_at=stop_at, checkpoint_seconds=0.0)
        steps.append(torch.load(tmp_path / "last.ckpt")["global_step"])
    student, _ = student
    assert steps == [5, 12, 20]
    close(student, models[0])
    pd.testing.assert_frame_equal(rows(tmp_path), rows(folder), rtol=1e-4)


def test_a_run_with_damaged_shards_starts_anew(text_tokens, tmp_path, capsys):
    run(text_tokens, tmp_path, 2, strategy="fsdp", stop_at=3, checkpoint_seconds=0.0)
    path = tmp_path / "last.ckpt"
    assert resumable(path, sharded=True) == path
    (shard,) = (tmp_path / SHARDS).glob("*/__1_0.distcp")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert resumable(path, sharded=True) is None
    assert f"{shard.name} is missing or has another digest" in capsys.readouterr().err
    assert not path.exists()
    assert not (tmp_path / SHARDS).exists()


def at_pass(number: int, place: int, how: Any) -> Any:
    """What makes the given forward pass of the student fail on one rank."""

    def sabotage(student: Any) -> None:
        passes = iter(range(1, 100))
        if rank() == place:
            student.model.norm.register_forward_hook(
                lambda module, inputs, output: how(output) if next(passes) == number else None
            )

    return sabotage


@STRATEGIES
def test_a_value_that_is_not_finite_on_one_rank_stops_all(text_tokens, tmp_path, strategy):
    sabotage = at_pass(3, 1, lambda output: output * float("nan"))
    with pytest.raises(Diverged, match=r"at step [34]$"):
        run(text_tokens, tmp_path, 2, sabotage=sabotage, strategy=strategy)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_rank_that_is_killed_ends_the_run_which_then_resumes(alone, text_tokens, tmp_path):
    with pytest.raises(RankFailed, match="rank 3 of 4 was killed by SIGKILL"):
        run(
            text_tokens,
            tmp_path,
            4,
            sabotage=at_pass(8, 3, lambda output: os.kill(os.getpid(), signal.SIGKILL)),
            checkpoint_seconds=0.0,
        )
    assert (tmp_path / "last.ckpt").exists()
    student, _ = run(text_tokens, tmp_path, 2)
    close(student, alone("a ratio of L_is")[1][0])
