"""A cell on two devices has the results and the files of a cell on one."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
import torch
from ranks import forget_groups
from safetensors.torch import load_file

from lit_prune.config import EVIDENCE, Finetuning, Optimizer
from lit_prune.config.overrides import override
from lit_prune.distill.callbacks import Diverged
from lit_prune.parallel.processes import together
from lit_prune.pipeline import artifacts, devices
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.stages.calibrate import collect
from lit_prune.progress import Silent
from lit_prune.store import Store
from lit_prune.store.store import CHECKS, SEQUENCES

RECIPE = Finetuning(max_steps=4, seq_len=32, batch_size=4, optimizer=Optimizer(lr=3e-3, min_lr=1e-3, warmup_steps=1))


@pytest.fixture
def cell(tiny_cell):
    """A cell with a fine-tuned teacher and validations, of 33 sequences: two batches on rank 0, one on rank 1."""
    changes = {"teacher.finetune": RECIPE, "evaluation.num_sequences": 33, "evaluation.num_validations": 2}
    return override(tiny_cell, changes | {"distill.alpha": "dynamic", "distill.match_layer_output": ("last:last",)})


def start_by(method, monkeypatch):
    """Forked processes have imported torch already."""

    def call(*args, **kwargs):
        if method == "fork":
            forget_groups()
        return together(*args, **kwargs, start_method=method)

    monkeypatch.setattr(devices, "together", call)


@pytest.mark.parametrize(
    ("method", "strategy"), [("fork", "ddp"), ("fork", "fsdp"), pytest.param("spawn", "fsdp", marks=pytest.mark.slow)]
)
def test_a_cell_on_two_devices_is_the_cell_on_one(cell, tiny_runner, tmp_path, method, strategy, monkeypatch):
    start_by(method, monkeypatch)
    how = dataclasses.replace(tiny_runner.ctx.execution, devices=2, strategy=strategy)
    both = [tiny_runner, Runner(Store(tmp_path / "two"), how, Silent())]
    for runner in both:
        assert runner.run([Entry("row", 0, cell, {})]) == 0
    for stage in ("correction", "cell"):
        one, two = (runner.store.node(cell, stage) for runner in both)
        assert one.result is not None
        assert one.key == two.key
        assert two.result == pytest.approx(one.result, rel=1e-4)
        assert (one.env.get("devices"), two.env["devices"]) == (None, 2)
        weights = load_file(one.folder / "model/model.safetensors")
        for name, theirs in load_file(two.folder / "model/model.safetensors").items():
            torch.testing.assert_close(theirs, weights[name], rtol=1e-4, atol=2e-5)
        assert {path.name for path in two.folder.iterdir()} == {path.name for path in one.folder.iterdir()}
    checks = [pd.read_csv(runner.store.node(cell, "cell").folder / CHECKS) for runner in both]
    pd.testing.assert_frame_equal(checks[1], checks[0], rtol=1e-4)
    losses = [pd.read_parquet(runner.store.node(cell, "cell").folder / SEQUENCES) for runner in both]
    assert list(losses[1].tokens) == list(losses[0].tokens)
    pd.testing.assert_frame_equal(losses[1], losses[0], rtol=1e-4)


def test_two_devices_collect_the_statistics_of_one(tiny_cell, tiny_runner, tmp_path, monkeypatch):
    """Of 5 sequences, the ranks read 3 and 2; the work is that of both."""
    start_by("fork", monkeypatch)
    cell = override(tiny_cell, {"calibration.num_sequences": 5})
    seen: list[int] = []
    found, work = [], []
    for name, count in (("one", 1), ("two", 2)):
        how = dataclasses.replace(tiny_runner.ctx.execution, devices=count)
        ctx = Runner(Store(tmp_path / name), how, Silent()).ctx
        ctx = dataclasses.replace(ctx, node=ctx.store.node(cell, "student"))
        stats = collect(cell, ctx, ctx.load(artifacts.to_prune(cell, ctx)), frozenset(EVIDENCE))
        tensors = {(kind, part): one for kind, parts in stats.statistics.items() for part, one in parts.items()}
        found.append(tensors | {("without", "spans"): stats.removal_losses(2)})
        work.append([ctx.store.node(cell, kind).env["work_of_pass"] for kind in EVIDENCE])
        seen += [ctx.store.node(cell, kind).result["count"] for kind in EVIDENCE]
        assert ctx.env.get("devices", 1) == count
    assert set(seen) == {5}
    assert found[0].keys() == found[1].keys()
    for what, tensor in found[0].items():
        torch.testing.assert_close(found[1][what], tensor, rtol=1e-4, atol=1e-6, equal_nan=True, msg=str(what))
    for one, two in zip(*work, strict=True):
        assert one["forward_flops"] > 0
        assert (two["forward_flops"], two["backward_flops"]) == (one["forward_flops"], one["backward_flops"])


def test_a_cell_that_diverges_on_two_devices_fails_alone(tiny_cell, tiny_runner, monkeypatch):
    start_by("fork", monkeypatch)
    how = dataclasses.replace(tiny_runner.ctx.execution, devices=2)
    runner = Runner(tiny_runner.store, how, Silent())
    wild = override(tiny_cell, {"distill.optimizer.lr": 1e30, "distill.optimizer.max_grad_norm": 1e30})
    assert runner.run([Entry("wild", 0, wild, {}), Entry("row", 0, tiny_cell, {})]) == 1
    failed = runner.store.node(wild, "cell")
    assert json.loads((failed.folder / "error.json").read_text())["type"] == Diverged.__name__
    assert runner.store.node(tiny_cell, "cell").result is not None
