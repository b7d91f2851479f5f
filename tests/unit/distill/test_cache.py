"""What a teacher shows, read from disk: the same bits as when it is asked; cut short, it is noticed and made again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.config.overrides import override
from lit_prune.data.retraining import RetrainingData
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.models.loading import load_model, locate
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.store import Store

SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "distill.max_steps": 5,
    "distill.optimizer.warmup_steps": 2, "evaluation.num_sequences": 2, "evaluation.seq_len": 32,
    "prune.hidden_size": 0.5,
}  # fmt: skip


@pytest.fixture
def cell(texts: list[str], tmp_path: Path) -> Cell:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(texts))
    return Resolver().pin(override(Cell(), {**SMALL, "corpus.path": str(text)}))


def run(folder: Path, *cells: Cell, **execution: Any) -> list[dict[str, torch.Tensor]]:
    """The trained weights of each cell."""
    how = Execution(accelerator="cpu", checkpoint_seconds=0.0, log_every=1, **execution)
    runner = Runner(Store(folder), how, ProgressBar(0, quiet=True), WandbTracker("test", "disabled", folder))
    entries = [Entry(str(i), 0, cell, {}) for i, cell in enumerate(cells)]
    assert runner.run(entries) == 0
    return [load_file(folder / "cell" / entry.key / "model/model.safetensors") for entry in entries]


def same(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"distill.precision": "bf16-mixed"}], ids=["float32", "bfloat16"])
def test_cached_states_train_the_same_student_bit_for_bit(cell, tmp_path, changes):
    cell = override(cell, changes)
    asked = run(tmp_path / "asked", cell)
    assert same(run(tmp_path / "cached", cell, cache_teacher=True), asked)
    assert same(
        run(tmp_path / "parts", cell, cache_teacher=True, accumulate=2), run(tmp_path / "p", cell, accumulate=2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kld", "mse_logits"])
def test_the_likeliest_tokens_from_disk_are_those_the_teacher_says(cell, tmp_path, loss):
    cell = override(cell, {"distill.top_k": 7, "distill.temperature": 2.0, "distill.logit_loss": loss})
    run(tmp_path / "asked", cell)
    run(tmp_path / "cached", cell, cache_teacher=True)
    histories = [pd.read_csv(next((tmp_path / store).glob("cell/*/metrics.csv"))) for store in ("asked", "cached")]
    for term in ("kd_loss", "grad_norm"):  # of every step; single weights AdamW moves by the sign of a rounding error
        assert histories[1][term].to_list() == pytest.approx(histories[0][term].to_list(), rel=2e-6)


def test_the_probability_that_is_left_out_is_kept_in_the_books(cell, tmp_path):
    run(tmp_path, override(cell, {"distill.top_k": 7}), cache_teacher=True)
    (folder,) = (path.parent for path in tmp_path.glob("teaching/*/result.json"))
    (tokens,) = (path.parent for path in tmp_path.glob("tokens/*/tokens.json"))
    data = RetrainingData(tokens, block=32, batch=2, steps=5, seed=0)
    ids = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    teacher = load_model(locate("python-3.1M"))
    with torch.no_grad():
        missing = 1 - teacher(ids).logits.softmax(-1).topk(7).values.sum(-1)
    kept = torch.from_file(str(folder / "missing_mass"), size=10 * 32, dtype=torch.float32).view(10, 32)
    torch.testing.assert_close(kept, missing, rtol=0, atol=1e-5)
    assert json.loads((folder / "result.json").read_text())["missing_mass"] == pytest.approx(missing.mean().item())


@pytest.mark.slow
def test_a_cache_serves_every_run_over_the_same_data_and_no_other(cell, tmp_path):
    run(tmp_path, cell, override(cell, {"distill.logit_loss": "mse"}), cache_teacher=True)
    (first,) = tmp_path.glob("teaching/*/result.json")
    stamp = first.stat().st_mtime_ns
    others = [override(cell, change) for change in ({"seed": 1}, {"distill.max_steps": 3}, {"distill.batch_size": 1})]
    run(tmp_path, override(cell, {"distill.ce_weight": 1.0}), *others, cache_teacher=True)
    assert first.stat().st_mtime_ns == stamp
    assert len(list(tmp_path.glob("teaching/*/result.json"))) == 1 + len(others)


def test_a_cache_that_was_cut_short_is_noticed_and_made_again(cell, tmp_path, capsys):
    run(tmp_path, cell, cache_teacher=True)
    (states,) = tmp_path.glob("teaching/*/states")
    whole = states.read_bytes()
    states.write_bytes(whole[:-1])
    run(tmp_path, override(cell, {"distill.ce_weight": 1.0}), cache_teacher=True)
    assert states.read_bytes() == whole


def test_a_cache_without_room_is_refused(cell, tmp_path):
    disk = shutil.disk_usage(tmp_path).total  # not what is free now: other processes may free more meanwhile
    steps = disk // (2 * 32 * 192 * 4) + 1
    with pytest.raises(ConfigError, match=r"^--teacher-cache: "):
        run(tmp_path, override(cell, {"distill.max_steps": int(steps)}), cache_teacher=True)


@pytest.mark.slow
def test_rows_with_an_intermediate_loss_ask_the_teacher(cell, tmp_path):
    states = dataclasses.replace(cell.distill, alpha="dynamic", embedding=True)
    cell = dataclasses.replace(cell, distill=states)
    assert same(run(tmp_path / "a", cell), run(tmp_path / "b", cell, cache_teacher=True))
    assert not list((tmp_path / "b").glob("teaching/*"))
