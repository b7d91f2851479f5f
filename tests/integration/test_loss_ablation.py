"""The real command, end to end, with the shipped teacher: compute, reuse, interrupt, share, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forked import finish, start
from offline_runs import inspect, parts
from small_table import ALONE, SETTINGS, command, flags, results

from lit_prune.cli.table import main
from lit_prune.experiments.loss_ablation import TABLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store in which the small table was computed by the real command, and what that said."""
    store = tmp_path_factory.mktemp("store")
    return store, command(*ALONE, "--seeds", "2", "--store", str(store))


def test_the_table_comes_with_every_row_and_a_verdict_for_every_claim(done):
    store, said = done
    assert said.returncode == 0, said.stderr
    for row in (*TABLE.rows, *TABLE.reference_rows):
        assert row in said.stdout
    assert sum(said.stdout.count(verdict) for verdict in ("holds", "fails", "undecided")) >= len(TABLE.claims)
    frame = results(store)
    assert (frame["state"] == "done").all()
    assert len(frame) == 7 * 2 + 2
    loss = frame.groupby("row")["lm_loss"].mean()
    assert loss["teacher"] < loss["L_logits(KLD)"] < loss["pruned, not retrained"]


def test_a_second_run_computes_nothing_and_imports_no_torch(done):
    store, first = done
    before = {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")}
    script = (
        "import sys; from lit_prune.cli.table import main; from lit_prune.experiments.loss_ablation import TABLE;"
        f"code = main(TABLE, {[*SETTINGS, '--seeds', '2', '--store', str(store)]!r});"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules; sys.exit(code)"
    )
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")} == before


def test_every_saved_student_is_loaded_by_stock_transformers(done):
    from transformers import AutoModelForCausalLM

    store, _ = done
    for folder in [*store.glob("student/*/model"), *store.glob("cell/*/model")][:4]:
        model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(notes[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
        assert not hasattr(model, "projection")


def test_status_and_diff_answer_from_the_store(done, capsys):
    store, _ = done
    assert main(TABLE, ["status", *SETTINGS, "--seeds", "3", "--store", str(store)]) == 0
    assert "23 cells: 16 done, 7 missing" in capsys.readouterr().out
    first, second = sorted(path.parent.name for path in store.glob("cell/*/result.json"))[:2]
    assert main(TABLE, ["diff", first, second[:8], "--store", str(store)]) == 0
    assert "result.lm_loss" in capsys.readouterr().out


# The same table of one seed, disturbed


ONE_SEED = [*ALONE, "--seeds", "1", "--checkpoint-seconds", "0"]


def of_one_seed(store: Path) -> pd.DataFrame:
    """Results of the first seed."""
    frame = results(store)
    return frame[frame["seed"] == 0].reset_index(drop=True)


def _interrupt(process: Any, store: Path, number: int, after: int) -> int:
    """Signal a run once `after` cells are done and the next one has a checkpoint; return its exit code."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.is_alive():
        if len(list(store.glob("cell/*/result.json"))) >= after and list(store.glob("cell/*/last.ckpt")):
            os.kill(process.pid, number)
            break
        time.sleep(0.02)
    return finish(process)


def test_killed_three_ways_and_resumed_the_table_is_the_uninterrupted_one(done, tmp_path):
    (finished, _), store, log = done, tmp_path / "store", tmp_path / "log"
    for number, code, after in ((signal.SIGKILL, -9, 0), (signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 4)):
        assert _interrupt(start(ONE_SEED, store, log), store, number, after) == code, log.read_text()
    assert not list(store.glob("reports/**/report.html"))
    assert finish(start(ONE_SEED, store, log)) == 0, log.read_text()
    pd.testing.assert_frame_equal(results(store), of_one_seed(finished), check_exact=True)
    cells = [path.parent for path in store.glob("cell/*/result.json")]
    assert len(cells) == 7 + 2
    for folder in cells:
        same = finished / folder.relative_to(store)
        for weights in same.glob("model/model.safetensors"):
            assert (folder / "model/model.safetensors").read_bytes() == weights.read_bytes()
        for history in same.glob("metrics.csv"):
            columns = ["step", "loss", "grad_norm", "lr"]
            resumed = pd.read_csv(folder / "metrics.csv")
            pd.testing.assert_frame_equal(resumed[columns], pd.read_csv(history)[columns], check_exact=True)


def test_two_processes_share_a_store_and_nothing_is_computed_twice_or_lost(done, tmp_path):
    (finished, _), store = done, tmp_path / "store"
    both = {log: start(ONE_SEED, store, log) for log in (tmp_path / "first", tmp_path / "second")}
    for log, process in both.items():
        assert finish(process) == 0, log.read_text()
        assert "failed" not in log.read_text()
    assert main(TABLE, [*ONE_SEED, "--store", str(store)]) == 0
    pd.testing.assert_frame_equal(results(store), of_one_seed(finished), check_exact=True)


def test_a_cell_that_diverges_is_named_and_the_others_go_on(tmp_path, capfd):
    words = ["--filter", "logit_loss=kld", "--add-row", "distill.optimizer.lr=1e30", "--seeds", "1"]
    assert main(TABLE, [*ALONE, *words, "--store", str(tmp_path)]) == 1
    frame = results(tmp_path).set_index("row")
    failed = frame[frame["state"] == "failed"]
    assert list(failed.index) == ["L_logits(KLD), distill.optimizer.lr=1e+30"]
    assert "Diverged" in failed["error"].iloc[0]
    assert "Diverged" in capfd.readouterr().out
    assert set(frame["state"]) == {"done", "failed"}


# Other models, texts and trackers


@pytest.mark.parametrize("model", ["stories260K-hf", "TinyStories-656K"])
def test_any_llama_and_any_text_by_configuration_alone(model, shared, tmp_path):
    settings = {
        "teacher.model": shared / "models" / model,
        "corpus.path": shared / "data/tinystories/tinystories_1000.json", "distill.max_steps": 30,
    }  # fmt: skip
    assert main(TABLE, [*ALONE, *flags(settings), "--seeds", "1", "--store", str(tmp_path)]) == 0
    loss = results(tmp_path).groupby("row")["lm_loss"].mean()
    assert loss["teacher"] < loss["L_logits(KLD)"] < loss["pruned, not retrained"]


def test_a_teacher_trained_on_the_spot_is_found_again(tmp_path, texts):
    (tmp_path / "text.txt").write_text("\n".join(texts * 3))
    recipe = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 24, "vocab_size": 300, "max_steps": 3, "seq_len": 32, "batch_size": 2,
        "corpus.path": tmp_path / "text.txt",
    }  # fmt: skip
    settings = {
        "teacher.model": "null", "corpus.path": tmp_path / "text.txt", "prune.num_attention_heads": "null",
        "calibration.num_sequences": 2, "evaluation.num_sequences": 2,
        **{f"teacher.pretraining.{name}": value for name, value in recipe.items()},
    }  # fmt: skip
    words = [*ALONE, *flags(settings), "--seeds", "1", "--store", str(tmp_path / "store")]
    assert main(TABLE, words) == 0
    (teacher,) = (tmp_path / "store/teacher").iterdir()
    assert json.loads((teacher / "result.json").read_text())["tokens"] == 3 * 2 * 32
    stamp = (teacher / "result.json").stat().st_mtime_ns
    assert main(TABLE, [*words, "--add-row", "logit_loss=mse_logits"]) == 0
    assert (teacher / "result.json").stat().st_mtime_ns == stamp


def test_wandb_mirrors_each_cell_and_its_loss_loses_nothing(tmp_path, monkeypatch, capfd):
    words = [*SETTINGS, "--filter", "logit_loss=kld", "--seeds", "1", "--wandb", "offline", "--store"]
    good, broken = tmp_path / "good", tmp_path / "broken"
    monkeypatch.setenv("WANDB_DATA_DIR", str(good / "wandb/data"))
    assert main(TABLE, [*words, str(good)]) == 0
    runs = parts(good)
    cells = {path.parent.name for path in good.glob("cell/*/result.json")}
    assert {run.name.rpartition("-")[2] for run in runs} == cells
    summary = json.loads(inspect(runs[0], "--summary"))
    told = results(good).set_index("row").loc[summary["config"]["row"]]
    assert summary["summary"]["lm_loss"] == pytest.approx(told["lm_loss"], rel=1e-12)
    broken.mkdir()
    (broken / "wandb").write_text("in the way")
    capfd.readouterr()
    assert main(TABLE, [*words, str(broken)]) == 0
    assert capfd.readouterr().err.count("W&B is lost") == 1
    pd.testing.assert_frame_equal(results(broken), results(good), check_exact=True)
