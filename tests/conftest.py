"""What all tests share: one thread, PyTorch as it is, no network, no account, and models that train in a moment."""

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
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


@pytest.fixture
def tiny_llama() -> Any:
    """A Llama of 3 blocks, width 32, 4 heads in 2 groups, MLP 48, vocabulary 256, always the same weights."""
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
def tiny_cell(tmp_path: Path, texts: list[str], tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    """A cell of a second: `tiny_llama` on 900 documents of `texts`, 4 steps of 2 sequences of 32 tokens."""
    from lit_prune.config import Cell
    from lit_prune.config.overrides import override
    from lit_prune.pipeline.resolve import Resolver

    tiny_llama.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("".join(texts * 3))
    plain = {
        "corpus.path": str(tmp_path / "text.txt"), "corpus.holdout_fraction": 0.2,
        "teacher.model": str(tmp_path / "tiny"),
        "calibration.num_sequences": 4, "calibration.seq_len": 32, "evaluation.num_sequences": 4,
        "evaluation.seq_len": 32,
        "distill.max_steps": 4, "distill.seq_len": 32, "distill.batch_size": 2, "prune.num_attention_heads": None,
    }  # fmt: skip
    return Resolver().pin(override(Cell(), plain))


@pytest.fixture
def tiny_runner(tmp_path: Path) -> Any:
    """A runner on an empty store, which logs every second step."""
    from lit_prune.config import Execution
    from lit_prune.pipeline.runner import Runner
    from lit_prune.progress import Silent
    from lit_prune.store import Store

    quick = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)
    return Runner(Store(tmp_path / "store"), quick, Silent())


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[..., Path]:
    """A maker of token folders whose ids count up from 0 in every split: a block is known by its first."""

    def make(**num_tokens: int) -> Path:
        import json

        folder = tmp_path / "numbered"
        folder.mkdir()
        counts = {"train": 0, "validation": 0, "calibration": 0} | num_tokens
        for split, count in counts.items():
            np.arange(count, dtype=np.uint16).tofile(folder / f"{split}.bin")
        about = {"dtype": "uint16", "eos": 0, "num_tokens": counts}
        (folder / "tokens.json").write_text(json.dumps(about))
        return folder

    return make
