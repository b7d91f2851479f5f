"""Shared fixtures: one thread, stock PyTorch, no network, no account, and models that train in a moment."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    LIT_PRUNE_CPU="plain",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_ERROR_REPORTING="false",
)

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import count_up
from paths import SHARED

torch.set_num_threads(1)

END = "<|endoftext|>"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models that lie beside the checkout, in `shared`."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder `shared` with real data and models beside the checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A table's `main` takes over the signals of the process it is in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """300 different documents of 5 to 60 words out of 60."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioudlmnrst", k=draw.randint(2, 7))) for _ in range(60)]
    return [f"{i}: {' '.join(draw.choices(words, k=draw.randint(5, 60)))}.\n" for i in range(300)]


@pytest.fixture(scope="session")
def tiny_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of 256 entries, like `tiny_llama`'s vocabulary; of ASCII only: it reads no more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = [letter for code in (10, *range(32, 127)) for letter, _ in level.pre_tokenize_str(chr(code))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256, special_tokens=[END], initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == 256
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def _tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_llama() -> Any:
    """A Llama of 3 blocks, width 32, 4 heads in 2 groups, MLP 48, vocabulary 256, always the same weights."""
    return _tiny_llama()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str], tiny_tokenizer: Any) -> Path:
    """`tiny_llama` with its tokenizer in `tiny`, and 900 documents in `text.txt`; leave it as it is."""
    folder = tmp_path_factory.mktemp("given")
    _tiny_llama().save_pretrained(folder / "tiny")
    tiny_tokenizer.save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text("".join(texts * 3))
    return folder


def _tiny_cell(folder: Path) -> Any:
    from lit_prune.config import Cell
    from lit_prune.config.overrides import override
    from lit_prune.pipeline.resolve import Resolver

    plain = {
        "corpus.path": str(folder / "text.txt"), "corpus.holdout_fraction": 0.2,
        "teacher.model": str(folder / "tiny"),
        "calibration.num_sequences": 4, "calibration.seq_len": 32, "evaluation.num_sequences": 4,
        "evaluation.seq_len": 32,
        "distill.max_steps": 4, "distill.seq_len": 32, "distill.batch_size": 2, "prune.num_attention_heads": None,
    }  # fmt: skip
    return Resolver().pin(override(Cell(), plain))


@pytest.fixture
def tiny_cell(tmp_path: Path, tiny_folder: Path) -> Any:
    """A cell of a second: `tiny_llama` on 900 documents of `texts`, 4 steps of 2 sequences of 32 tokens."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    return _tiny_cell(tmp_path)


@pytest.fixture(scope="session")
def shared_cell(tiny_folder: Path) -> Any:
    """The same over files that all tests share; leave them as they are."""
    return _tiny_cell(tiny_folder)


def _tiny_runner(folder: Path) -> Any:
    from lit_prune.config import Execution
    from lit_prune.pipeline.runner import Runner
    from lit_prune.progress import Silent
    from lit_prune.store import Store

    quick = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)
    return Runner(Store(folder / "store"), quick, Silent())


@pytest.fixture
def tiny_runner(tmp_path: Path) -> Any:
    """A runner on an empty store, which logs every second step."""
    return _tiny_runner(tmp_path)


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory, shared_cell: Any) -> Path:
    """A store in which `shared_cell` is done, to be copied."""
    from lit_prune.pipeline.expand import Entry

    folder = tmp_path_factory.mktemp("finished")
    assert _tiny_runner(folder).run([Entry("row", 0, shared_cell, {})]) == 0
    return folder / "store"


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[..., Path]:
    """A maker of token folders, each in the place of the one before."""
    return lambda **num_tokens: count_up(tmp_path / "numbered", **num_tokens)
