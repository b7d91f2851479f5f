"""A plan lists what cells take on a GPU, and refuses what does not fit with the flag that would make it fit."""

from __future__ import annotations

import dataclasses

import pytest
from refusals import refuses

from lit_prune.cli.table import main
from lit_prune.config import Execution, Finetuning
from lit_prune.config.gpus import GPUS, Gpu
from lit_prune.config.overrides import override
from lit_prune.distill.memory import PERSISTENT
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models.flops import forward_flops
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.plan import plan
from lit_prune.pipeline.work import WORK, flops_of_token
from lit_prune.pruning.shapes import config_of_student
from lit_prune.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_hours_follow_from_flops_devices_and_speed(tiny_cell, store):
    cell = override(tiny_cell, {"teacher.finetune": Finetuning(max_steps=6, seq_len=32, batch_size=4)})
    entries = [Entry("row", seed, override(cell, {"seed": seed}), {}) for seed in range(3)]
    found = plan(entries, store, Execution(devices=2), "h100", 0.5)
    pruning, teacher, row = found.lines
    assert (row.what, row.cells, row.tokens) == ("row", 3, 3 * 4 * 2 * 32)
    assert row.flops == row.tokens * flops_of_token(cell)
    assert row.hours == pytest.approx(row.flops / (2 * 67e12 * 0.5) / 3600)
    assert teacher.flops == WORK["correction"](cell)
    assert pruning.hours == pytest.approx(pruning.flops / (67e12 * 0.5) / 3600)
    assert found.gpu_hours == pytest.approx(pruning.hours + 2 * teacher.hours + 2 * row.hours)
    assert not any(line.problem for line in found.lines)
    again = plan(entries, store, Execution(devices=2, activation_checkpointing=True), "h100", 0.5).lines[2]
    forward = forward_flops(config_of_student(cell), 32)
    assert (again.flops - row.flops) / row.tokens == pytest.approx(forward)
    assert again.memory["activations"] < row.memory["activations"]
    mixed = [Entry("row", 0, override(cell, {"distill.precision": "bf16-mixed"}), {})]
    assert plan(mixed, store, Execution(devices=2), "h100", 0.5).lines[2].hours == pytest.approx(
        row.flops / 3 / (2 * 989e12 * 0.5) / 3600
    )
    with refuses("--devices", 3):
        plan(entries, store, Execution(devices=3), "h100", 0.5)


def peaks(cell, store, **execution) -> float:
    return plan([Entry("row", 0, cell, {})], store, Execution(**execution), "rtx4090", 0.4).lines[-1].peak


def test_what_does_not_fit_is_refused_with_the_flag_that_makes_it_fit(tiny_cell, store, monkeypatch):
    cell = override(tiny_cell, {"distill.batch_size": 8, "evaluation.num_sequences": 1})

    def problem(num_bytes: float) -> str | None:
        monkeypatch.setitem(GPUS, "rtx4090", Gpu(num_bytes / 0.94, 1e12, 1e12))
        return plan([Entry("row", 0, cell, {})], store, Execution(grad_accum_steps=1), "rtx4090", 0.4).lines[-1].problem

    whole, cut = peaks(cell, store, grad_accum_steps=1), peaks(cell, store, grad_accum_steps=8)
    assert cut < whole
    assert problem(whole + 1) is None
    assert problem(cut + 1).endswith("it fits with --grad-accum-steps 8")
    assert problem(cut - 1).endswith("it fits with --plan a100-40gb")
    monkeypatch.setattr("lit_prune.pipeline.plan.GPUS", {"rtx4090": Gpu(1, 1e12, 1e12)})
    assert problem(1).endswith("no flag makes it fit")


def test_what_fits_in_shards_is_refused_with_the_flags_that_divide_it(tiny_cell, store, monkeypatch):
    cell = override(tiny_cell, {"distill.batch_size": 8, "evaluation.num_sequences": 1})
    entries, how = [Entry("row", 0, cell, {})], {"grad_accum_steps": 2, "activation_checkpointing": True}

    def line(num_bytes: float, **execution):
        monkeypatch.setattr("lit_prune.pipeline.plan.GPUS", {"rtx4090": Gpu(num_bytes / 0.94, 1e12, 1e12)})
        return plan(entries, store, Execution(**how | execution), "rtx4090", 0.4).lines[-1]

    whole, shares = (line(1e12, devices=4, strategy=strategy) for strategy in ("ddp", "fsdp"))
    for part in PERSISTENT:
        assert shares.memory[part] == whole.memory[part] / 4
    assert shares.peak < whole.peak
    assert line(shares.peak + 1, devices=4, strategy="fsdp").problem is None
    assert line(shares.peak + 1, devices=4).problem.endswith("it fits with --strategy fsdp")
    assert line(shares.peak + 1).problem.endswith("it fits with --devices 4 --strategy fsdp")
    assert line(1, devices=4).problem.endswith("no flag makes it fit")


def test_the_command_prints_a_plan_and_computes_nothing(tiny_folder, tmp_path, capsys):
    words = [
        f"--set=teacher.model={tiny_folder / 'tiny'}", f"--set=corpus.path={tiny_folder / 'text.txt'}",
        "--filter=logit_loss=kld", "--seeds=1", f"--store={tmp_path / 'store'}",
    ]  # fmt: skip
    assert main(TABLE, [*words, "--plan=h200", "--gpu-price=3"]) == 0
    printed = capsys.readouterr().out
    for text in ("h200", "calibrating and pruning", "total", "optimizer", "peak", "$"):
        assert text in printed
    assert not list((tmp_path / "store").rglob("result.json"))


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--gpu-price=3"], "--plan"),
        (["--plan=h200", "--utilization=0"], "--utilization"),
        (["--plan=h200", "--gpu-price=-1"], "--gpu-price"),
    ],
)
def test_flags_of_a_plan_that_cannot_be_are_refused(words, field, capsys):
    assert main(TABLE, words) == 2
    assert f"error: {field}: " in capsys.readouterr().err


def test_a_planned_run_is_the_run(tiny_cell, store):
    """The sizes are those of the models that the cell has."""
    line = plan([Entry("row", 0, tiny_cell, {})], store, Execution(), "h200", 0.4).lines[-1]
    assert (line.student < line.teacher, line.micro_batches) == (True, 1)
    assert dataclasses.asdict(line)["memory"]["teacher weights"] == 4 * line.teacher
