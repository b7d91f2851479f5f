"""A folder with the files that the documents name, the parts that they register, and a small table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from documents import python_blocks
from grid_runs import finish, outcome, start
from paths import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.registry import Registry


@pytest.fixture(scope="session")
def workplace(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("workplace")
    lines = [json.dumps({"text": f"{part} {text}"}) for part in range(16) for text in texts]
    (folder / "stories.jsonl").write_text("\n".join(lines))
    (folder / "my-llama").symlink_to(ROOT / "lit_prune/teachers/python-3.1M")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture
def in_workplace(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in a folder of its own with the files of `workplace`: the store that it makes there is its own."""
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the documents add to the registries, which are put back afterwards."""
    added = []
    for block in (block for block in python_blocks() if block.module):
        module = importlib.import_module(block.module)
        registries = [part for part in vars(module).values() if isinstance(part, Registry)]
        before = {name for registry in registries for name in registry}
        for registry in registries:
            monkeypatch.setattr(registry, "_parts", dict(registry._parts))
        block.execute()
        added += {name for registry in registries for name in registry} - before
    return added


@pytest.fixture(scope="session")
def grid_words(texts, tiny_tokenizer, tmp_path_factory) -> list[str]:
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


@pytest.fixture(scope="session")
def alone(grid_words: list[str], tmp_path_factory) -> dict[str, Any]:
    """What one process computes."""
    store = tmp_path_factory.mktemp("alone") / "store"
    finish(start(grid_words, store))
    return outcome(store)
