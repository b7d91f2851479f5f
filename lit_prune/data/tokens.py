"""Documents -> one memory-mapped file of token ids a split, cut into fixed blocks.

Tokenised once for each (tokenizer, corpus) and found again by address. Documents follow each other, parted by what the
tokenizer puts around a text, or else by the end-of-text token: a model trained with only one of the two has never seen
the other. The last block is filled up and its filling is never a label, so no tail is lost.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import passages as texts
from lit_prune.data.corpus import SPLITS, Passage, Reader, Split

IGNORED = -100
"""Label of a position that is not scored, as in `torch.nn.functional.cross_entropy`."""

_PASSAGES_AT_ONCE = 64

log = logging.getLogger(__name__)


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """The blocks of one split.

    Item i holds `input_ids` and `labels`, both int64 [block]; labels are the ids themselves, IGNORED where filled up.
    """

    def __init__(self, folder: Path, split: Split, block: int) -> None:
        about = json.loads((folder / "tokens.json").read_text())
        self.block, self.filler, self.num_tokens = block, about["eos"], about["num_tokens"][split]
        empty = np.empty(0, about["dtype"])
        if (size := (folder / f"{split}.bin").stat().st_size) != self.num_tokens * np.dtype(about["dtype"]).itemsize:
            raise ValueError(f"{folder / f'{split}.bin'} holds {size} bytes, not those of {self.num_tokens} tokens")
        self._ids = np.memmap(folder / f"{split}.bin", dtype=about["dtype"], mode="r") if self.num_tokens else empty

    def __len__(self) -> int:
        whole, rest = divmod(self.num_tokens, self.block)
        # A last block of a single token has nothing to predict: the mean of its losses would be no number.
        return whole + (rest > 1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        ids = torch.from_numpy(self._ids[index * self.block : (index + 1) * self.block].astype(np.int64))
        missing = self.block - len(ids)
        return {
            "input_ids": torch.nn.functional.pad(ids, (0, missing), value=self.filler),
            "labels": torch.nn.functional.pad(ids, (0, missing), value=IGNORED),
        }


def write_tokens(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    progress: Callable[[int], None] = lambda num_tokens: None,
    *,
    vocab_size: int | None = None,
) -> dict[str, int]:
    """Tokenise a corpus into `folder`, calling `progress` with the number of train tokens so far.

    Text that spells a control token, such as `</s>`, stays text. `vocab_size` is the number of embeddings of the model
    that reads the ids. Returns the tokens of each split.

    Raises:
        ConfigError: if a split has no token, an id has no embedding, or the text is not that of the fingerprint.
    """
    tokeniser = _Tokeniser.of(tokenizer)
    ids_of_words = tokenizer.get_vocab().values()
    dtype = np.dtype(np.uint16 if max(ids_of_words, default=0) < 2**16 else np.uint32)
    num_tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, BinaryIO] = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    reader = Reader(corpus)
    passages = iter(reader)
    try:
        for split, ids in tokeniser.tokenised(passages):
            room = (corpus.max_tokens or 2**62) - num_tokens[split]
            written = np.asarray(ids[:room], np.int64)
            _check_ids(written, vocab_size, tokenizer)
            files[split].write(written.astype(dtype).tobytes())
            num_tokens[split] += len(written)
            progress(num_tokens["train"])
            if corpus.max_tokens and num_tokens["train"] >= corpus.max_tokens:
                reader.finish(passages)
                break
    finally:
        for file in files.values():
            file.close()
    _log_what_was_met(reader)
    for name, count in num_tokens.items():
        if not count:
            raise ConfigError(
                f"corpus.source: {corpus.source} leaves no text for the {name} split; its {reader.num_documents} "
                "documents are split by document (more documents, another corpus.heldout, or corpus.separator)"
            )
    about = {
        "dtype": dtype.name, "eos": tokeniser.eos, "num_tokens": num_tokens, "num_documents": reader.num_documents,
        "num_duplicates": reader.num_duplicates, "num_skipped": reader.skipped,
    }  # fmt: skip
    (folder / "tokens.json").write_text(json.dumps(about, indent=1))
    return num_tokens


def _check_ids(ids: np.ndarray, vocab_size: int | None, tokenizer: Any) -> None:
    if vocab_size is not None and len(ids) and ids.max() >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(int(ids.max()))
        raise ConfigError(
            f"teacher.model: token ids must be below the model's {vocab_size} embeddings, got {ids.max()} for {token!r}"
        )


def _log_what_was_met(reader: Reader) -> None:
    source = reader.corpus.source
    if reader.skipped:
        log.warning("corpus.source: %s: skipped %d rows without text", source, reader.skipped)
    if reader.num_duplicates:
        log.warning(
            "corpus.source: %s: %d of %d documents are copies of an earlier one (in the same split)",
            source, reader.num_duplicates, reader.num_documents,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Tokeniser:
    """A tokenizer and what it puts around a text."""

    tokenizer: Any
    eos: int
    before: list[int]
    """Ids before a document."""
    after: list[int]
    """Ids after a document: the end-of-text token if the tokenizer marks neither the beginning nor the end."""

    @classmethod
    def of(cls, tokenizer: Any) -> _Tokeniser:
        """Raises ConfigError if the tokenizer has neither an end-of-text nor a begin-of-text token."""
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
        if eos is None:
            raise ConfigError("teacher.model: its tokenizer has neither an end-of-text nor a begin-of-text token")
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        around = tokenizer("a")["input_ids"]
        end = len(around) - (around[-1:] == [eos])
        start = next((i for i in range(len(around)) if bare and around[i : i + len(bare)] == bare), end)
        before, after = around[:start], around[start + len(bare) :]
        if after[-1:] != [eos] and before[:1] != [tokenizer.bos_token_id]:
            after = [*after, eos]
        return cls(tokenizer, eos, before, after)

    def tokenised(self, passages: Iterator[Passage]) -> Iterator[tuple[Split, list[int]]]:
        """The ids of each passage, with what stands around a document at its beginning and its end."""
        for batch in _batches(passages):
            # Each special token is added here: a text that spells one stays text.
            encoded = self.tokenizer(
                [passage.content for passage in batch], add_special_tokens=False, split_special_tokens=True,
                return_attention_mask=False, verbose=False,
            )["input_ids"]  # fmt: skip
            for passage, ids in zip(batch, encoded, strict=True):
                before, after = self.before if passage.begins else [], self.after if passage.ends else []
                yield passage.split, [*before, *ids, *after]


def _batches(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Passages that are encoded at once, bounded in number and in characters."""
    batch: list[Passage] = []
    size = 0
    for passage in passages:
        batch.append(passage)
        size += len(passage.content)
        if len(batch) == _PASSAGES_AT_ONCE or size >= texts.LONGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
