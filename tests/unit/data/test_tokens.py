"""No token is lost or invented between a document and a label."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_prune.config import Corpus
from lit_prune.data import passages
from lit_prune.data.corpus import SPLITS, documents
from lit_prune.data.tokens import IGNORED, TokenSequences, write_tokens


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Corpus:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(path=str(source))


def expected(corpus: Corpus, tokenizer, split: str) -> list[int]:
    """The tokens of a split, one document after another, each with its end."""
    texts = [text for name, text in documents(corpus) if name == split]
    return [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def layers_of(folder: Path, split: str, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All blocks of a split: ids and labels, each [blocks, block]."""
    blocks = list(TokenSequences(folder, split, block))
    return torch.stack([b["input_ids"] for b in blocks]), torch.stack([b["labels"] for b in blocks])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("block", [2, 16, 256])
def test_no_token_is_lost(tmp_path: Path, corpus: Corpus, tiny_tokenizer, split: str, block: int) -> None:
    counts = write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens")
    wanted = expected(corpus, tiny_tokenizer, split)
    assert counts[split] == len(wanted) > 500
    # A single token left over has neither a context nor a successor in its block.
    wanted = wanted[: len(wanted) - (len(wanted) % block == 1)]
    ids, labels = layers_of(tmp_path / "tokens", split, block)
    assert ids.dtype == labels.dtype == torch.int64
    assert ids.shape == labels.shape == (-(-len(wanted) // block), block)
    assert ids.flatten()[: len(wanted)].tolist() == wanted
    assert labels.flatten()[: len(wanted)].tolist() == wanted
    assert (ids.flatten()[len(wanted) :] == tiny_tokenizer.eos_token_id).all()
    assert (labels.flatten()[len(wanted) :] == IGNORED).all()


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(8, 2), (9, 2), (10, 3), (11, 3), (12, 3), (1, 0), (2, 1)])
def test_a_block_that_predicts_nothing_is_none(numbered: Callable, num_tokens: int, num_blocks: int) -> None:
    """The mean of the losses of a block with a single token would be no number, and end a run."""
    blocks = TokenSequences(numbered(train=num_tokens), "train", 4)
    assert len(blocks) == num_blocks == len(list(blocks))
    assert all((block["labels"][1:] != IGNORED).any() for block in blocks)


@pytest.mark.parametrize("index", [3, -1])
def test_there_is_no_block_outside(numbered: Callable, index: int) -> None:
    with pytest.raises(IndexError):
        TokenSequences(numbered(train=12), "train", 4)[index]


@pytest.mark.parametrize(("entries", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_large_vocabularies_are_stored_wider(tmp_path: Path, entries: int, dtype: str) -> None:
    """The last entry of the vocabulary comes back as itself."""
    words = {f"w{i}": i for i in range(entries)}
    model = Tokenizer(models.WordLevel(words, unk_token="w0"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="w0")
    assert len(tokenizer) == entries
    rows = [f"w{entries - 1} w{i}" for i in range(1, 60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = Corpus(path=str(tmp_path / "a.jsonl"))
    write_tokens(corpus, tokenizer, tmp_path / "tokens")
    assert json.loads((tmp_path / "tokens" / "tokens.json").read_text())["dtype"] == dtype
    ids, _ = layers_of(tmp_path / "tokens", "train", 3)
    assert ids.flatten().tolist() == expected(corpus, tokenizer, "train")
    assert ids[0, 0] == entries - 1


def test_an_end_the_tokenizer_writes_is_not_doubled(tmp_path: Path, corpus: Corpus, tiny_tokenizer) -> None:
    plain, ending = tmp_path / "plain", tmp_path / "ending"
    write_tokens(corpus, tiny_tokenizer, plain)
    end = (tiny_tokenizer.eos_token, tiny_tokenizer.eos_token_id)
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    write_tokens(corpus, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end[0]), ending)
    for split in SPLITS:
        assert (plain / f"{split}.bin").read_bytes() == (ending / f"{split}.bin").read_bytes()


@pytest.mark.parametrize("max_tokens", [1, 1000, 1033])
def test_max_tokens_is_the_train_split(tmp_path: Path, corpus: Corpus, tiny_tokenizer, max_tokens: int) -> None:
    """Exactly the first tokens of the stream, of which the held-out splits take part."""
    limited = Corpus(path=corpus.path, holdout_fraction=0.3, max_tokens=max_tokens)
    counts = write_tokens(limited, tiny_tokenizer, tmp_path / "tokens")
    assert counts["train"] == max_tokens
    stored = np.fromfile(tmp_path / "tokens" / "train.bin", np.uint16)
    assert stored.tolist() == expected(limited, tiny_tokenizer, "train")[:max_tokens]


def test_so_few_tokens_that_reading_ends_before_the_held_out_text_are_refused(
    tmp_path: Path, corpus: Corpus, tiny_tokenizer
) -> None:
    with refuses("corpus.max_tokens", "got 1"):
        write_tokens(Corpus(path=corpus.path, holdout_fraction=0.01, max_tokens=1), tiny_tokenizer, tmp_path / "tokens")


def test_progress_counts_train_tokens(tmp_path: Path, corpus: Corpus, tiny_tokenizer) -> None:
    seen: list[int] = []
    counts = write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == counts["train"]


@pytest.mark.parametrize(("heldout", "split"), [(0.0, "validation"), (0.5, "train")])
def test_a_split_without_text_is_refused(tmp_path: Path, corpus: Corpus, tiny_tokenizer, heldout, split) -> None:
    with refuses("corpus.path", split, "corpus.holdout_fraction"):
        write_tokens(Corpus(path=corpus.path, holdout_fraction=heldout), tiny_tokenizer, tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "tokens.json").exists()


def test_a_tokenizer_without_end_is_refused(tmp_path: Path, corpus: Corpus, tiny_tokenizer) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with refuses("teacher.model", "end-of-text"):
        write_tokens(corpus, endless, tmp_path / "tokens")


def test_passages_of_a_document_have_one_end(
    tmp_path: Path, texts: list[str], tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One end a part of the only document, wherever its passages are cut."""
    (tmp_path / "a.txt").write_text("".join(texts))
    corpus = Corpus(path=str(tmp_path / "a.txt"))
    whole = write_tokens(corpus, tiny_tokenizer, tmp_path / "whole")
    monkeypatch.setattr(passages, "LONGEST", 500)
    assert write_tokens(corpus, tiny_tokenizer, tmp_path / "cut") == whole
    for split in SPLITS:
        cut = np.fromfile(tmp_path / "cut" / f"{split}.bin", np.uint16)
        assert cut.tolist() == np.fromfile(tmp_path / "whole" / f"{split}.bin", np.uint16).tolist()
        assert (cut == tiny_tokenizer.eos_token_id).sum() == 1
        assert cut[-1] == tiny_tokenizer.eos_token_id


def test_text_that_spells_a_control_token_stays_text(tmp_path: Path, tiny_tokenizer) -> None:
    end = tiny_tokenizer.eos_token
    rows = [f"{i} before {end} after {end}" for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    write_tokens(Corpus(path=str(tmp_path / "a.jsonl")), tiny_tokenizer, tmp_path / "tokens")
    ids = np.concatenate([np.fromfile(tmp_path / "tokens" / f"{split}.bin", np.uint16) for split in SPLITS])
    assert (ids == tiny_tokenizer.eos_token_id).sum() == len(rows)
    found = tiny_tokenizer.decode(ids[ids != tiny_tokenizer.eos_token_id]).split(f"after {end}")
    assert sorted(filter(None, found)) == sorted(f"{i} before {end} " for i in range(60))
    assert tiny_tokenizer(end)["input_ids"] == [tiny_tokenizer.eos_token_id]


@pytest.mark.parametrize("model", ["stories260K-hf", "TinyStories-656K"])
def test_real_tokenizers_write_what_they_encode(tmp_path: Path, shared: Path, model: str) -> None:
    """Begin tokens and prefixes of words included: texts without control tokens have the ids they always had."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / model)
    rows = [f"{i} Once upon a time,\n there was  a cat. caf\u00e9" for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = Corpus(path=str(tmp_path / "a.jsonl"))
    write_tokens(corpus, tokenizer, tmp_path / "tokens")
    for split in SPLITS:
        wanted = [i for name, text in documents(corpus) if name == split for i in tokenizer(text)["input_ids"]]
        assert np.fromfile(tmp_path / "tokens" / f"{split}.bin", np.uint16).tolist() == wanted


def words(vocab: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of words with these ids."""
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w0")


def test_the_largest_id_decides_the_width(tmp_path: Path) -> None:
    """Three entries, of which one has an id that 16 bits do not hold."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "w1 w2 " * i}) + "\n" for i in range(1, 60)))
    write_tokens(Corpus(path=str(tmp_path / "a.jsonl")), words({"w0": 0, "w1": 1, "w2": 70_000}), tmp_path / "tokens")
    ids, _ = layers_of(tmp_path / "tokens", "train", 3)
    assert set(ids.flatten().tolist()) == {0, 1, 70_000}


def test_ids_beyond_the_embedding_are_refused_where_they_occur(tmp_path: Path) -> None:
    """And an entry that no text yields is not."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "w1 w2 " * i}) + "\n" for i in range(1, 60)))
    corpus = Corpus(path=str(tmp_path / "a.jsonl"))
    unused = {"w0": 0, "w1": 1, "w2": 2, "w3": 3}
    write_tokens(corpus, words(unused), tmp_path / "accepted", vocab_size=3)
    with refuses("teacher.model", "got 3", "'w2'"):
        write_tokens(corpus, words({"w0": 0, "w1": 1, "w2": 3}), tmp_path / "refused", vocab_size=3)
    assert not (tmp_path / "refused" / "tokens.json").exists()


def test_copies_and_rows_without_text_are_counted(tmp_path: Path, texts: list[str], tiny_tokenizer, caplog) -> None:
    rows = [*texts, None, " \n", *texts[:50]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    write_tokens(Corpus(path=str(tmp_path / "a.jsonl")), tiny_tokenizer, tmp_path / "tokens")
    about = json.loads((tmp_path / "tokens" / "tokens.json").read_text())
    assert (about["num_documents"], about["num_duplicates"], about["num_skipped"]) == (350, 50, 2)
    assert "skipped 2 rows" in caplog.text
    assert "50 of 350 documents" in caplog.text
