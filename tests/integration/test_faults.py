"""Random faults: killed commands, damaged stores and full disks lead to the result of an undisturbed run.

The command runs in forked processes, which spares each the seconds of importing torch. Draws are seeded; where a kill
falls depends on the speed of the machine.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forked import finish, start
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.store import Node

pytestmark = pytest.mark.slow

KILLS, DAMAGED_ROUNDS = 6, 3


@pytest.fixture(scope="module")
def words(texts, tiny_tokenizer, tmp_path_factory) -> list[str]:
    """Flags of a table of two retrained rows and its references, on a Llama of 2 blocks of random weights."""
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
    return [*sets, *rows, "--wandb", "disabled", "--checkpoint-seconds", "0", "--accelerator", "cpu"]


def outcome(store: Path) -> dict[str, Any]:
    """What the finished cells say: results, weights and histories, without times."""
    (path,) = store.glob("reports/loss_ablation/*/results.csv")
    found: dict[str, Any] = {
        "results": pd.read_csv(path).drop(columns=["commit", "wall_seconds", "peak_memory"]).to_csv()
    }
    for folder in store.glob("cell/*"):
        assert Node(folder).verified is not None, folder
        for file in folder.rglob("*.safetensors"):
            found[f"{folder.name}/{file.name}"] = file.read_bytes()
        if (folder / "metrics.csv").exists():
            found[folder.name] = pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second").to_csv()
    assert not [*store.glob("cell/*/**/.*"), *store.glob("cell/*/last.ckpt"), *store.glob("leases/*")]
    return found


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory) -> tuple[Path, dict[str, Any], float]:
    """A finished store, what it says, and the seconds it took."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert finish(start(words, folder / "store", folder / "log")) == 0, (folder / "log").read_text()
    took = time.monotonic() - began
    return folder / "store", outcome(folder / "store"), took


def test_killed_anywhere_and_run_again_the_answer_is_the_same(words, undisturbed, tmp_path):
    _, expected, took = undisturbed
    draw, kills, log = random.Random(0), 0, tmp_path / "log"
    for number in range(KILLS):
        store = tmp_path / f"killed-{number}"
        while kills < KILLS:
            process = start(words, store, log)
            time.sleep(draw.uniform(0.0, took))
            process.kill()
            killed = finish(process) == -9
            kills += killed
            if not killed:
                break
        assert finish(start(words, store, log)) == 0, log.read_text()
        assert outcome(store) == expected
        if kills == KILLS:
            break


def spoil(path: Path, draw: random.Random) -> str:
    """Delete a file, cut it, or flip one of its bits."""
    content = bytearray(path.read_bytes())
    kind = draw.choice(["delete", "cut", "flip"]) if content else "delete"
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return f"{kind} {path}"


def test_damaged_anywhere_and_run_again_the_answer_is_the_same(words, undisturbed, tmp_path):
    finished, expected, _ = undisturbed
    draw, log = random.Random(0), tmp_path / "log"
    for number in range(DAMAGED_ROUNDS):
        store = tmp_path / f"damaged-{number}"
        shutil.copytree(finished, store)
        files = sorted(path for path in store.glob("*/*/**/*") if path.is_file())
        files = [path for path in files if path.relative_to(store).parts[0] != "reports"]
        done = [spoil(path, draw) for path in draw.sample(files, 3)]
        # Of half the cells, so that what lies upstream of them is read again.
        for result in draw.sample(sorted(store.glob("cell/*/result.json")), 2):
            result.unlink()
        listing = "report" if number == 0 else "status"
        assert finish(start([*words, listing], store, log)) == 0, (done, log.read_text())
        assert finish(start(words, store, log)) == 0, (done, log.read_text())
        assert outcome(store) == expected, done


@pytest.mark.parametrize("limit", [0, 3_000, 60_000])
def test_on_a_full_disk_the_command_ends_in_words_and_goes_on_once_there_is_room(words, undisturbed, tmp_path, limit):
    """A limit on the size of files makes the kernel refuse real writes, at another place for each."""
    _, expected, _ = undisturbed
    store, log = tmp_path / "full", tmp_path / "log.full"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # The limit is on the log as well: it goes to a pipe.
    reading, writing = os.pipe()
    code = finish(start(words, store, Path(f"/dev/fd/{writing}"), fill))
    os.close(writing)
    with os.fdopen(reading) as output:
        said = output.read()
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert said.strip()
    assert finish(start(words, store, log)) == 0, log.read_text()
    assert outcome(store) == expected
