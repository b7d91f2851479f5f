"""The trained part of a student: its last layers, or adapters merged into it; the rest is bitwise unchanged."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import CASES, logits, model_of
from partly_trained import LORA, NEEDS_PEFT, NEEDS_QLORA, QLORA, changed, recipe, trainable
from refusals import refuses
from transformers import AutoModelForCausalLM

from lit_prune.config import Cell, Execution, Lora
from lit_prune.config.overrides import override
from lit_prune.distill.train import train
from lit_prune.distill.trainable import check_trained, targets_of, trained_part
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.validate import check_models

QUICK = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)
PARTS = [
    pytest.param({"train_last_layers": 1}, id="last"),
    pytest.param({"lora": LORA}, id="lora", marks=NEEDS_PEFT),
    pytest.param({"lora": QLORA}, id="qlora", marks=NEEDS_QLORA),
]


class Stop(Exception):
    """The interruption."""


@pytest.fixture
def tokens(tiny_cell: Cell, tiny_runner: Any) -> Path:
    return artifacts.tokens(tiny_cell, tiny_runner.ctx)


def noisy(model: Any) -> Any:
    """A copy with other weights: a student of the model's shape."""
    copied, draw = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for parameter in copied.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return copied


def trained(teacher: Any, tokens: Path, folder: Path, stop_at: int | None = None, **part: Any) -> Any:
    """A noisy copy of the teacher after steps towards it, or interrupted before step `stop_at` is saved."""

    def on_progress(step: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stop

    folder.mkdir(exist_ok=True)
    student = noisy(teacher)
    train(student, teacher, recipe(**part), tokens, folder, seed=0, execution=QUICK, on_progress=on_progress)
    return student


# The last blocks


@pytest.mark.parametrize("last", [1, 2, 3])
def test_only_the_last_blocks_the_final_norm_and_the_head_are_trained(tokens, tmp_path, tiny_llama, last):
    student = trained(tiny_llama, tokens, tmp_path / "run", train_last_layers=last, max_steps=3)
    parts = [f"model.layers.{3 - i}." for i in range(1, last + 1)] + ["model.norm.", "lm_head."]
    expected = {name for name in student.state_dict() if name.startswith(tuple(parts))}
    assert changed(noisy(tiny_llama), student) == expected
    assert trainable(student) == set(student.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_of_every_family_the_last_block_and_what_follows_it_is_trained(name):
    """A head that is tied to the embedding is trained as both."""
    model = copy.deepcopy(model_of(name))
    anatomy = anatomy_of(model.config)
    with trained_part(model, recipe(train_last_layers=1)):
        parts = f"{anatomy.layers}.2.", f"{anatomy.final_norm}.", "lm_head.", "embed_out."
        table = "embed", "wte"
        for parameter in trainable(model):
            tied = model.config.tie_word_embeddings and any(part in parameter for part in table)
            assert parameter.startswith(parts) or tied
        assert model.get_output_embeddings().weight.requires_grad
        assert all(p.requires_grad for p in layers_of(model)[-1].parameters())
        assert not any(p.requires_grad for block in layers_of(model)[:-1] for p in block.parameters())


# Adapters


@NEEDS_PEFT
def test_adapters_are_merged_into_the_linear_layers_of_the_blocks_and_nothing_else_moves(tokens, tmp_path, tiny_llama):
    student = trained(tiny_llama, tokens, tmp_path / "run", lora=LORA, max_steps=3)
    linears = {n for n in student.state_dict() if n.endswith("_proj.weight")}
    assert changed(noisy(tiny_llama), student) == linears
    for name in linears:
        difference = student.state_dict()[name] - noisy(tiny_llama).state_dict()[name]
        assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 4
    student.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob("adapter*"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not changed(student, loaded)
    assert trainable(student) == {name for name, _ in student.named_parameters()}


@NEEDS_PEFT
@pytest.mark.parametrize("name", CASES)
def test_every_family_takes_adapters_and_has_its_own_layout_again_when_they_are_merged(name):
    model = copy.deepcopy(model_of(name))
    before, names = logits(model), set(model.state_dict())
    with trained_part(model, recipe(lora=LORA)):
        assert trainable(model)
        assert all("lora_" in parameter for parameter in trainable(model))
        torch.testing.assert_close(logits(model), before)  # an adapter begins as nothing
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        model.eval()
        adapted = logits(model)
        assert not torch.allclose(adapted, before, atol=1e-2)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=1e-4)


@NEEDS_PEFT
def test_targets_are_named_as_in_the_block(tiny_llama):
    assert targets_of(tiny_llama, Lora(target_modules=("q_proj", "mlp.up_proj"))) == ["self_attn.q_proj", "mlp.up_proj"]
    with trained_part(tiny_llama, recipe(lora=Lora(target_modules=("v_proj",)))):
        modules = {name.split(".lora_")[0] for name in trainable(tiny_llama)}
        assert modules == {f"model.layers.{i}.self_attn.v_proj" for i in range(3)}


# All


@pytest.mark.parametrize("part", PARTS)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tokens, tmp_path, tiny_llama, part):
    whole = trained(tiny_llama, tokens, tmp_path / "whole", **part)
    for stop in (4, 7):
        with pytest.raises(Stop):
            trained(tiny_llama, tokens, tmp_path / "cut", stop, **part)
    assert not changed(whole, trained(tiny_llama, tokens, tmp_path / "cut", **part))
    histories = [pd.read_csv(tmp_path / f / "metrics.csv").drop(columns="tokens_per_second") for f in ("whole", "cut")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert histories[0]["loss"].iloc[-1] < histories[0]["loss"].iloc[0]


@pytest.mark.parametrize("part", PARTS)
def test_a_cell_is_trained_in_part_by_configuration_alone(tiny_cell, tiny_runner, part):
    requested = override(
        tiny_cell, {f"distill.{name}": value for name, value in part.items()} | {"evaluation.num_validations": 2}
    )
    tiny_runner.check([requested])
    assert tiny_runner.run([Entry("row", 0, requested, {})]) == 0
    node = tiny_runner.store.node(requested, "cell")
    student = AutoModelForCausalLM.from_pretrained(artifacts.student(requested, tiny_runner.ctx))
    assert (
        0
        < len(changed(student, AutoModelForCausalLM.from_pretrained(node.folder / "model")))
        < len(student.state_dict())
    )


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"distill.train_last_layers": 0}, "distill.train_last_layers", (">= 1", "got 0")),
        (
            {"distill.train_last_layers": 4},
            "distill.train_last_layers",
            ("<= 3", "got 4"),
        ),
        (
            {"distill.train_last_layers": 3, "prune.num_hidden_layers": 2},
            "distill.train_last_layers",
            ("<= 2", "got 3"),
        ),
        (
            {"distill.train_last_layers": 1, "distill.lora.rank": 4},
            "distill.lora",
            ("distill.train_last_layers",),
        ),
    ],
)
def test_a_part_there_is_not_is_refused(tiny_cell, changes, field, values):
    with refuses(field, *values):
        check_models(override(tiny_cell, changes))


@NEEDS_PEFT
@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"rank": 0}, "distill.lora.rank", (">= 1", "got 0")),
        ({"dropout": 1.0}, "distill.lora.dropout", ("< 1", "got 1.0")),
        (
            {"target_modules": ["query"]},
            "distill.lora.target_modules",
            ("query", "self_attn.q_p"),
        ),
        ({"target_modules": ["lm_head"]}, "distill.lora.target_modules", ("lm_head",)),
    ],
)
def test_adapters_there_cannot_be_are_refused(tiny_cell, changes, field, values):
    with refuses(field, *values):
        check_models(override(tiny_cell, {f"distill.lora.{name}": value for name, value in changes.items()}))


def test_adapters_without_peft_are_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refuses("distill.lora", "peft", "lit-prune[lora]"):
        check_trained(recipe(lora=LORA), tiny_llama.config, 3)
