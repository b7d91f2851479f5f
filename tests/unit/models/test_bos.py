"""Sequences of a model that expects a begin token start with one, and no token is lost or scored twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refuses
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_prune.config import Corpus, Pretraining, Teacher
from lit_prune.config.overrides import override
from lit_prune.data.tokens import IGNORED, TokenSequences, write_tokens
from lit_prune.models import loading
from lit_prune.models.bos import expects_bos
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store.address import key

BOS = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A train split whose tokens are known by their place, but for begin tokens at 0, 7, 10 and 21."""
    ids = np.arange(100, 130, dtype=np.uint16)
    ids[[0, 7, 10, 21]] = BOS
    for split in ("train", "validation", "calibration"):
        ids.tofile(tmp_path / f"{split}.bin")
    counts = dict.fromkeys(("train", "validation", "calibration"), len(ids))
    (tmp_path / "tokens.json").write_text(json.dumps({"dtype": "uint16", "eos": 2, "bos": BOS, "num_tokens": counts}))
    return tmp_path


def test_every_sequence_begins_with_it_once(folder: Path) -> None:
    """By hand, in sequences of 4: 0-3, 4-6, 7-10 (with its own), 11-13, 14-16, 17-19, 20-22, 23-25, 26-28, 29."""
    blocks = TokenSequences(folder, "train", 4)
    rows = [block["input_ids"].tolist() for block in blocks]
    assert rows == [
        [1, 101, 102, 103], [1, 104, 105, 106], [1, 108, 109, 1], [1, 111, 112, 113], [1, 114, 115, 116],
        [1, 117, 118, 119], [1, 120, 1, 122], [1, 123, 124, 125], [1, 126, 127, 128], [1, 129, 2, 2],
    ]  # fmt: skip
    assert blocks.num_whole == 9
    labels = [block["labels"] for block in blocks]
    scored = [label for row in labels for label in row[1:].tolist() if label != IGNORED]
    # Each token once, but for those at the beginning of a document, which nothing predicts.
    assert sorted(scored) == sorted([1, 1, *(100 + i for i in range(30) if i not in (0, 7, 10, 21))])
    assert [blocks.num_scored(i) for i in range(len(blocks))] == [int((row[1:] != IGNORED).sum()) for row in labels]


@pytest.mark.parametrize(("block", "num_blocks"), [(31, 1), (30, 1), (29, 2), (2, 26)])
def test_no_block_is_empty(folder: Path, block: int, num_blocks: int) -> None:
    blocks = TokenSequences(folder, "train", block)
    assert len(blocks) == len(list(blocks)) == num_blocks
    assert all((row["labels"][1:] != IGNORED).any() for row in blocks)


def test_a_split_is_written_with_it(tmp_path: Path, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K-hf")
    rows = [{"text": f"Once upon a time there were {i} cats."} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for bos, first in ((True, {tokenizer.bos_token_id}), (None, None)):
        write_tokens(Corpus(path=str(tmp_path / "a.jsonl"), bos=bos), tokenizer, tmp_path / str(bos))
        found = {int(block["input_ids"][0]) for block in TokenSequences(tmp_path / str(bos), "train", 5)}
        assert found == first if first else len(found) > 1


def test_a_tokenizer_without_one_is_refused(tmp_path: Path, tiny_tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token=tiny_tokenizer.eos_token
    )
    with refuses("corpus.bos", "true"):
        write_tokens(Corpus(path=str(tmp_path / "a.jsonl"), bos=True), tokenizer, tmp_path / "tokens")
    with refuses("teacher.pretraining.corpus.bos"):
        loading.pin(Teacher(model=None, pretraining=Pretraining(corpus=Corpus(bos=True))))


@pytest.fixture
def beginning(tiny_cell: Any, tmp_path: Path) -> Any:
    """A copy of the teacher of `tiny_cell` whose tokenizer begins texts with its begin-of-text token."""
    shutil.copytree(tmp_path / "tiny", tmp_path / "beginning")
    path = tmp_path / "beginning" / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    end = ("<|endoftext|>", 0)
    backend.post_processor = processors.TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    backend.save(str(path))
    return override(tiny_cell, {"teacher.model": str(tmp_path / "beginning")})


def test_the_default_is_what_the_teacher_expects(tiny_cell: Any, beginning: Any) -> None:
    """Where a model expects none, the address stays what it was; where it does, the field is part of it."""
    pins = Resolver()
    assert tiny_cell.corpus.bos is None
    assert pins.pin(override(tiny_cell, {"corpus.bos": False})) == tiny_cell
    found = pins.pin(beginning)
    assert found.corpus.bos is True
    without = pins.pin(override(beginning, {"corpus.bos": False}))
    assert without.corpus.bos is False
    assert len({key(cell) for cell in (tiny_cell, found, without)}) == 3
    assert pins.pin(found) == found


def test_what_the_files_say_is_what_transformers_does(tmp_path: Path, shared: Path, beginning: Any) -> None:
    folders = [*(shared / "models").iterdir(), Path(beginning.teacher.model), Path(loading.locate("python-3.1M"))]
    found = []
    for folder in (path for path in folders if path.is_dir()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found.append(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
        assert expects_bos(folder) == found[-1], folder
    assert sorted(set(found)) == [False, True]


def test_a_broken_tokenizer_is_one_line(beginning: Any) -> None:
    (Path(beginning.teacher.model) / "tokenizer.json").write_text("{")
    with refuses("teacher.model", "tokenizer.json"):
        Resolver().pin(beginning)
