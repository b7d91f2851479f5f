"""The teacher is fine-tuned on the cell's text before pruning, as its own node."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses

from lit_prune.config import Cell, Corpus, Execution, Finetuning, Optimizer, Teacher
from lit_prune.config.overrides import fields_of, override
from lit_prune.models import loading
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import planned_steps
from lit_prune.pipeline.stages.finetune import correct
from lit_prune.pipeline.validate import check_models, check_ranges
from lit_prune.store import address
from lit_prune.store.address import STAGES, identity, key

RECIPE = Finetuning(max_steps=6, seq_len=32, batch_size=4, optimizer=Optimizer(lr=3e-3, min_lr=1e-3, warmup_steps=1))
QUICK = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)
PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))


class Stop(Exception):
    """The interruption."""


@pytest.fixture
def cell(tiny_cell: Cell) -> Cell:
    """A cell with a corrected teacher."""
    return override(tiny_cell, {"teacher.finetune": RECIPE})


@pytest.fixture
def runner(tiny_runner: Runner) -> Runner:
    return tiny_runner


def without(cell: Cell) -> Cell:
    return dataclasses.replace(cell, teacher=dataclasses.replace(cell.teacher, finetune=None))


# Addresses


@pytest.mark.parametrize("stage", STAGES)
def test_a_correction_changes_the_address_of_all_but_the_teachers_training_and_the_tokens(stage):
    corrected = override(PINNED, {"teacher.finetune.max_steps": 100})
    assert corrected.teacher.finetune == Finetuning()
    assert (key(corrected, stage) != key(PINNED, stage)) == (stage not in ("tokenizer", "teacher", "tokens"))
    longer = override(PINNED, {"teacher.finetune.max_steps": 101})
    assert (key(corrected, stage) != key(longer, stage)) == (stage not in ("tokenizer", "teacher", "tokens"))


def test_a_raised_schema_of_the_correction_touches_only_cells_that_have_one(monkeypatch):
    corrected = override(PINNED, {"teacher.finetune.max_steps": 100})
    before = {stage: (key(PINNED, stage), key(corrected, stage)) for stage in STAGES}
    monkeypatch.setitem(address.SCHEMA, "correction", 2)
    same = {stage for stage in STAGES if key(corrected, stage) == before[stage][1]}
    assert same == {"tokenizer", "teacher", "tokens"}
    assert {stage for stage in STAGES if key(PINNED, stage) != before[stage][0]} == {"correction"}
    assert identity(corrected, "cell")["schema"]["correction"] == 2


def test_a_setting_of_the_correction_asks_for_one():
    assert "teacher.finetune.optimizer.lr" in fields_of(Cell)
    assert override(Cell(), {"teacher.finetune.optimizer.lr": 1e-5}).teacher.finetune.optimizer.lr == 1e-5
    requested = override(Cell(), {"teacher.finetune.max_steps": 7})
    assert override(requested, {"teacher.finetune": None}) == Cell()


@pytest.mark.parametrize(("name", "least"), [("max_steps", 1), ("batch_size", 1), ("seq_len", 2)])
def test_a_size_that_is_too_small_is_refused(name, least):
    path = f"teacher.finetune.{name}"
    check_ranges(override(Cell(), {path: least}))
    with refuses(path, f">= {least}", least - 1):
        override(Cell(), {path: least - 1})


# The node


def test_the_node_holds_a_better_teacher_in_stock_layout_and_says_by_how_much(cell, runner):
    folder = Path(artifacts.teacher(cell, runner.ctx))
    node = runner.store.node(cell, "correction")
    assert folder == node.folder / "model"
    result = node.result
    assert result["tokens"] == 6 * 4 * 32
    assert result["lm_loss"] < result["lm_loss_before"]
    assert result["reduction"] == pytest.approx(1 - result["lm_loss"] / result["lm_loss_before"])
    assert result["lm_loss_tokens"] % 31 == 0
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert len(loading.load_tokenizer(str(folder))) == 256
    assert not (node.folder / "last.ckpt").exists()
    assert artifacts.base_teacher(cell, runner.ctx) == cell.teacher.model
    assert artifacts.teacher(without(cell), runner.ctx) == cell.teacher.model
    stamp = (node.folder / "result.json").stat().st_mtime_ns
    assert Path(artifacts.teacher(cell, runner.ctx)) == folder
    assert (node.folder / "result.json").stat().st_mtime_ns == stamp


def test_corrected_by_hand_it_has_the_same_weights(cell, runner):
    """Four sequences a step in the seeded order, cross-entropy of the next token, clipped, AdamW."""
    from lit_prune.data.retraining import RetrainingData
    from lit_prune.distill.optim import learning_rate

    corrected = loading.load_model(artifacts.teacher(cell, runner.ctx))
    model = loading.load_model(cell.teacher.model).train()
    groups = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    decays = zip(groups, (0.1, 0.0), strict=True)
    adamw = torch.optim.AdamW([{"params": g, "weight_decay": d} for g, d in decays], betas=(0.9, 0.95))
    data = RetrainingData(artifacts.tokens(cell, runner.ctx), seq_len=32, batch_size=4, max_steps=6, seed=0)
    for step, batch in enumerate(data.train_dataloader()):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(RECIPE.optimizer, step, 6)
        adamw.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
    for ours, theirs in zip(corrected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(cell, runner, tmp_path):
    tokens, location = artifacts.tokens(cell, runner.ctx), cell.teacher.model

    def corrected(folder: Path, stop_at: int | None = None) -> Any:
        def on_progress(step: int, row: dict[str, float]) -> None:
            if step == stop_at:
                raise Stop

        folder.mkdir(exist_ok=True)
        model = loading.load_model(location)
        correct(RECIPE, model, tokens, folder, QUICK, on_progress)
        return model

    whole = corrected(tmp_path / "whole")
    with pytest.raises(Stop):
        corrected(tmp_path / "cut", stop_at=4)
    resumed = corrected(tmp_path / "cut").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())


# In the grid


def test_a_corrected_cell_prunes_and_imitates_the_corrected_teacher_on_the_same_tokens(cell, runner):
    """With the shape of the teacher and no retraining the student is the corrected teacher."""
    whole = override(cell, {"prune.hidden_size": None, "prune.intermediate_size": None, "distill.max_steps": 0})
    entries = [Entry("corrected", 0, whole, {}), Entry("not", 0, without(whole), {})]
    assert planned_steps(runner.store, entries) == RECIPE.max_steps
    runner.check(entry.cell for entry in entries)
    assert runner.run(entries) == 0
    assert planned_steps(runner.store, entries) == 0
    corrected, plain = (runner.store.node(entry.cell, "cell").result["lm_loss"] for entry in entries)
    assert corrected < plain
    assert [len(list((runner.store.root / stage).iterdir())) for stage in ("tokens", "correction")] == [1, 1]


def test_planned_steps_count_a_correction_once_for_all_its_cells(cell, runner):
    entries = [Entry("row", seed, dataclasses.replace(cell, seed=seed), {}) for seed in range(3)]
    assert planned_steps(runner.store, entries) == 3 * 4 + RECIPE.max_steps
    artifacts.teacher(cell, runner.ctx)
    assert planned_steps(runner.store, entries) == 3 * 4


def test_a_text_without_a_sequence_of_the_corrections_length_is_refused(cell, runner):
    path = Path(cell.teacher.model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 100_000}))
    requested = override(cell, {"teacher.finetune.seq_len": 100_000, "teacher.fingerprint": None})
    with refuses("validation", 100000):
        runner.check([Resolver().pin(requested)])


def test_a_sequence_longer_than_the_teachers_positions_is_refused(tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_positions=64, n_embd=32, n_head=4, n_layer=2, vocab_size=256).save_pretrained(tmp_path)
    plain = {"teacher.model": str(tmp_path), "prune.hidden_size": None, "prune.num_attention_heads": None,
    "calibration.seq_len": 64,
             "evaluation.seq_len": 64, "distill.seq_len": 64, "teacher.finetune.seq_len": 65}  # fmt: skip
    with refuses("teacher.finetune.seq_len", 64, 65):
        check_models(override(Cell(), plain))
