"""A cell on two devices has the results and the files of a cell on one."""

from __future__ import annotations

import dataclasses
import functools
import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lit_prune.config import Finetuning, Optimizer
from lit_prune.config.overrides import override
from lit_prune.distill.callbacks import Diverged
from lit_prune.parallel.processes import together
from lit_prune.pipeline import devices
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.progress import Silent
from lit_prune.store import Store
from lit_prune.store.store import CHECKS, SEQUENCES

RECIPE = Finetuning(max_steps=4, seq_len=32, batch_size=4, optimizer=Optimizer(lr=3e-3, min_lr=1e-3, warmup_steps=1))


@pytest.fixture
def cell(tiny_cell):
    """A cell with a fine-tuned teacher, validations, and an odd number of validation sequences."""
    changes = {"teacher.finetune": RECIPE, "evaluation.num_sequences": 5, "evaluation.num_validations": 2}
    return override(tiny_cell, changes | {"distill.alpha": "dynamic", "distill.match_layer_output": ("last:last",)})


def start_by(method, monkeypatch):
    """Forked processes have imported torch already."""
    monkeypatch.setattr(devices, "together", functools.partial(together, start_method=method))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_cell_on_two_devices_is_the_cell_on_one(cell, tiny_runner, tmp_path, method, monkeypatch):
    start_by(method, monkeypatch)
    how = dataclasses.replace(tiny_runner.ctx.execution, devices=2)
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


def test_a_cell_that_diverges_on_two_devices_fails_alone(tiny_cell, tiny_runner, monkeypatch):
    start_by("fork", monkeypatch)
    how = dataclasses.replace(tiny_runner.ctx.execution, devices=2)
    runner = Runner(tiny_runner.store, how, Silent())
    wild = override(tiny_cell, {"distill.optimizer.lr": 1e30, "distill.optimizer.max_grad_norm": 1e30})
    assert runner.run([Entry("wild", 0, wild, {}), Entry("row", 0, tiny_cell, {})]) == 1
    failed = runner.store.node(wild, "cell")
    assert json.loads((failed.folder / "error.json").read_text())["type"] == Diverged.__name__
    assert runner.store.node(tiny_cell, "cell").result is not None
