"""Checkpoints are written atomically; a damaged one is dropped and the run starts again."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from distilled import llama, student_of
from process import python

from lit_prune.config import Corpus, Distill, Execution, Optimizer, Pretraining
from lit_prune.data.bpe import train_tokenizer
from lit_prune.distill.checkpoint_io import AtomicCheckpointIO, resumable
from lit_prune.distill.train import train
from lit_prune.pipeline.stages.pretrain import tokenise

RECIPE = Distill(seq_len=16, batch_size=2, max_steps=4, optimizer=Optimizer(warmup_steps=1))
QUICK = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=1)


class Stop(Exception):
    """The interruption."""


@pytest.fixture
def tokens(numbered) -> Path:
    """256 ids in 0 to 47 for each split."""
    folder = numbered(train=256, validation=32, calibration=32)
    (np.fromfile(folder / "train.bin", np.uint16) % 48).tofile(folder / "train.bin")
    return folder


def run(tokens: Path, folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    def on_progress(step: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stop

    folder.mkdir(exist_ok=True)
    student = student_of()
    with contextlib.suppress(Stop):
        train(student, llama(), RECIPE, tokens, folder, seed=0, execution=QUICK, on_progress=on_progress)
    return student.state_dict()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "last.ckpt"
    generator = torch.Generator().manual_seed(0)
    content = {"weights": torch.randn(500, generator=generator), "rng": generator.get_state(), "step": 3}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def equal(ours, theirs) -> bool:
    return ours["step"] == theirs["step"] and all(torch.equal(ours[name], theirs[name]) for name in ("weights", "rng"))


def test_every_flipped_bit_is_seen(checkpoint):
    """Also those of headers, which hold no tensor. A hit on the length of the comment is the only one that may pass."""
    whole, content = checkpoint.read_bytes(), torch.load(checkpoint)
    bits = torch.randint(8 * len(whole), (400,), generator=torch.Generator().manual_seed(0)).tolist()
    for bit in (*bits, *range(8 * (len(whole) - 66), 8 * len(whole))):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        checkpoint.write_bytes(spoiled)
        if resumable(checkpoint) is not None:
            assert len(whole) - 66 <= bit // 8 < len(whole) - 64
            assert equal(torch.load(checkpoint), content)


def test_a_checkpoint_without_a_digest_is_read_record_by_record(checkpoint):
    content = torch.load(checkpoint)
    torch.save(content, checkpoint)
    assert resumable(checkpoint) == checkpoint
    spoiled = bytearray(checkpoint.read_bytes())
    spoiled[spoiled.index(content["weights"].numpy().tobytes())] ^= 1
    checkpoint.write_bytes(spoiled)
    assert resumable(checkpoint) is None


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_cut_checkpoint_is_dropped_and_named_in_one_line(checkpoint, kept, capsys):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    assert resumable(checkpoint) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(checkpoint) in line


def test_no_checkpoint_and_a_whole_one(checkpoint):
    assert resumable(checkpoint) == checkpoint
    assert resumable(checkpoint.with_name("other.ckpt")) is None


def test_a_run_whose_checkpoint_is_damaged_ends_where_an_uninterrupted_one_does(tokens, tmp_path):
    expected = run(tokens, tmp_path / "whole")
    run(tokens, tmp_path / "cut", stop_at=3)
    path = tmp_path / "cut/last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    found = run(tokens, tmp_path / "cut")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pd.read_csv(tmp_path / "cut/metrics.csv")["step"].tolist() == [1, 2, 3, 4]


def test_checkpoints_do_not_go_through_the_temporary_folder(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    run(tokens, tmp_path / "run", stop_at=3)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.ckpt", "metrics.csv"}


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from lit_prune.distill.checkpoint_io import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, sys.argv[1])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.slow
def test_a_checkpoint_cut_by_a_full_disk_leaves_the_old_one_and_says_so(checkpoint):
    process = python(FULL, checkpoint)
    output, errors = process.communicate(timeout=120)
    assert (output, errors) == ("27\n", "")  # EFBIG
    assert resumable(checkpoint) == checkpoint
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", ["tokens.json", "train.bin", "validation.bin"])
def test_half_written_tokens_of_a_pretrained_teacher_are_written_again(texts, tmp_path, name):
    source = tmp_path / "texts"
    source.mkdir()
    for number, text in enumerate(texts):
        (source / f"{number}.txt").write_text(text)
    recipe = Pretraining(corpus=Corpus(path=str(source), holdout_fraction=0.2), vocab_size=300)
    tokenizer = train_tokenizer(recipe.corpus, recipe.vocab_size)
    tokenise(recipe, tokenizer, tmp_path)
    path = tmp_path / "tokens" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    tokenise(recipe, tokenizer, tmp_path)
    assert path.read_bytes() == whole
