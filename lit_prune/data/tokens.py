"""Documents -> one memory-mapped file of token ids a split, cut into fixed blocks.

Tokenised once for each (tokenizer, corpus) and found again by address. Documents follow each other, parted by what the
tokenizer puts around a text, or else by the end-of-text token: a model trained with only one of the two has never seen
the other. The last block is filled up and its filling is never a label, so no tail is lost.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_prune.config import ConfigError, Corpus
from lit_prune.data.corpus import SPLITS, Split, documents

IGNORED = -100
"""Label of a position that is not scored, as in `torch.nn.functional.cross_entropy`."""

_DOCUMENTS_AT_ONCE = 64


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
    corpus: Corpus, tokenizer: Any, folder: Path, progress: Callable[[int], None] = lambda num_tokens: None
) -> dict[str, int]:
    """Tokenise a corpus into `folder`, calling `progress` with the number of train tokens so far.

    Returns the tokens of each split.

    Raises:
        ConfigError: a split without a single token.
    """
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if eos is None:
        raise ConfigError("teacher.model: its tokenizer has neither an end-of-text nor a begin-of-text token")
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    num_tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, BinaryIO] = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for split, ids in _tokenised(corpus, tokenizer, eos):
            room = (corpus.max_tokens or 2**62) - num_tokens[split]
            files[split].write(np.asarray(ids[:room], dtype).tobytes())
            num_tokens[split] += min(len(ids), room)
            progress(num_tokens["train"])
            if corpus.max_tokens and num_tokens["train"] >= corpus.max_tokens:
                break
    finally:
        for file in files.values():
            file.close()
    for name, count in num_tokens.items():
        if not count:
            raise ConfigError(f"corpus.source: {corpus.source} leaves no text for the {name} split")
    about = {"dtype": dtype.name, "eos": eos, "num_tokens": num_tokens}
    (folder / "tokens.json").write_text(json.dumps(about, indent=1))
    return num_tokens


def _tokenised(corpus: Corpus, tokenizer: Any, eos: int) -> Iterator[tuple[Split, list[int]]]:
    stream = documents(corpus)
    while batch := list(itertools.islice(stream, _DOCUMENTS_AT_ONCE)):
        encoded = tokenizer([text for _, text in batch], return_attention_mask=False)["input_ids"]
        for (split, _), ids in zip(batch, encoded, strict=True):
            parted = ids and (ids[-1] == eos or ids[0] == tokenizer.bos_token_id)
            yield split, ids if parted else [*ids, eos]
