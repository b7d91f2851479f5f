"""Tables on several workers: the results of one process bit for bit, whoever is killed and however many drivers run."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.store import Node

pytestmark = pytest.mark.slow

KILLS = 4


@pytest.fixture(scope="module")
def words(texts, tiny_tokenizer, tmp_path_factory) -> list[str]:
    """Flags of a table of two retrained rows and its references, on a Llama of 2 layers of random weights."""
    folder = tmp_path_factory.mktemp("given")
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    tiny_tokenizer.save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text("".join(texts * 3))
    settings = {
        "corpus.path": folder / "text.txt", "corpus.holdout_fraction": 0.2, "teacher.model": folder / "tiny",
        "calibration.num_sequences": 4, "calibration.seq_len": 32, "evaluation.num_sequences": 4,
        "evaluation.seq_len": 32,
        "distill.max_steps": 4, "distill.seq_len": 32, "distill.batch_size": 2, "distill.optimizer.warmup_steps": 1,
    }  # fmt: skip
    sets = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    rows = ["--filter", "logit_loss=kld", "--filter", "logit_loss=mse", "--seeds", "1"]
    how = ["--accelerator", "cpu", "--cpu", "plain", "--threads", "1", "--checkpoint-seconds", "0"]
    return [*sets, *rows, *how, "--wandb", "disabled"]


def start(words: list[str], store: Path, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "lit_prune.experiments.loss_ablation", *words, "--store", str(store), *more]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def outcome(store: Path) -> dict[str, Any]:
    """Results and weights of the finished cells; nothing is left beside them."""
    found: dict[str, Any] = {}
    for folder in store.glob("cell/*"):
        assert Node(folder).verified is not None, folder
        found[folder.name] = Node(folder).result
        for file in folder.rglob("*.safetensors"):
            found[f"{folder.name}/{file.name}"] = file.read_bytes()
    left = [store.glob(f"{name}/*") for name in ("leases", "workers", "teacher_outputs")]
    assert not [path for paths in left for path in paths]
    return found


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> dict[str, Any]:
    """What one process computes."""
    store = tmp_path_factory.mktemp("alone") / "store"
    finish(start(words, store))
    return outcome(store)


def test_two_drivers_with_a_worker_each_compute_each_cell_once(words, alone, tmp_path):
    drivers = [start(words, tmp_path / "store", "--jobs", "1") for _ in range(2)]
    for driver in drivers:
        finish(driver)
    assert outcome(tmp_path / "store") == alone
    for path in tmp_path.glob("store/*/*/env.json"):
        assert len(json.loads(path.read_text())["attempts"]) == 1, path


def test_workers_and_driver_killed_at_random_moments_leave_the_same_results(words, alone, tmp_path):
    draw, store = random.Random(0), tmp_path / "store"
    driver = start(words, store, "--jobs", "2")
    for _ in range(KILLS):
        workers = _workers(driver)
        if driver.poll() is not None:
            break
        time.sleep(draw.uniform(0, 6))
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            draw.choice(workers).kill()
    workers = _workers(driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM, 0), output
    psutil.wait_procs(workers, 60)
    assert not [worker for worker in workers if worker.is_running()]
    driver = start(words, store, "--jobs", "2")
    workers = _workers(driver)
    time.sleep(draw.uniform(0, 10))
    driver.kill()
    driver.communicate()
    psutil.wait_procs(workers, 60)
    assert not [worker for worker in workers if worker.is_running()]
    finish(start(words, store, "--jobs", "2"))
    assert outcome(store) == alone


def _workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the workers of a driver as soon as one computes."""
    while driver.poll() is None:
        found = [
            child for child in psutil.Process(driver.pid).children()
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE
        ]  # fmt: skip
        if found:
            return found
        time.sleep(0.05)
    return []
