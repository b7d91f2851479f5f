"""Tokenize documents to one memory-mapped file per split, and cut it into sequences of a fixed length.

Tokens are computed once per (tokenizer, corpus) and found again by address. Documents are concatenated, separated by
the special tokens that the tokenizer puts around a text, or else by the end-of-text token: a model trained with one of
the two has never seen the other. The last sequence is padded, and padding is never a label, so no tail is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_prune.config import ConfigError, Corpus
from lit_prune.data.corpus import SPLITS, Reader, Split
from lit_prune.data.domains import DomainRuns
from lit_prune.data.encode import Encoder
from lit_prune.data.rows import warn_of_skipped
from lit_prune.store.atomic import sync, write_json

_ALL = 2**62
"""A sequence length longer than any split."""
IGNORED = -100
"""Label of a position that is not scored, as in `torch.nn.functional.cross_entropy`."""

log = logging.getLogger(__name__)


class TokenSequences(Dataset[dict[str, torch.Tensor]]):
    """The sequences of one split that have at least one scored token.

    Item i has `input_ids` and `labels`, both int64 [seq_len]. Labels equal the ids, except for IGNORED at padding and
    where the loss is not computed (`corpus.loss_on`). With `corpus.bos` every sequence begins with that token. It is
    prepended unless a document begins there, so each token of the split is in exactly one sequence. With
    `corpus.domain`, no sequence mixes domains, and the shorter last sequence of each domain comes after all others.
    """

    def __init__(self, folder: Path, split: Split, seq_len: int) -> None:
        about = json.loads((folder / "tokens.json").read_text())
        self.seq_len, self.filler, self.num_tokens = seq_len, about["eos"], about["num_tokens"][split]
        self._bos: int | None = about.get("bos")
        self._ids = self._mapped(folder / f"{split}.bin", np.dtype(about["dtype"]))
        masked = about.get("masked", False)
        self._scored = self._mapped(folder / f"{split}.scored.bin", np.dtype(np.uint8)) if masked else None
        sizes: dict[str, int] = about.get("domains", {}).get(split, {"": self.num_tokens})
        self.domains = tuple(sizes)
        """Names of the domains; one without a name if none are distinguished."""
        self._ends = np.cumsum(list(sizes.values()))
        whole, cut = list[np.ndarray](), list[np.ndarray]()
        for first, end in itertools.pairwise([0, *self._ends]):
            starts = self._with_labels(self._starts_between(first, end))
            last = len(starts) - (len(starts) > 0 and starts[-1] + self._room(starts[-1]) > end)
            whole.append(starts[:last])
            cut.append(starts[last:])
        self._starts = np.concatenate([*whole, *cut])
        self.num_whole = sum(map(len, whole))
        self.domain_of = self._domain_of(self._starts)
        """Index of the domain of each sequence: int64 [sequences]."""

    def _mapped(self, path: Path, dtype: np.dtype) -> np.ndarray:
        if (size := path.stat().st_size) != self.num_tokens * dtype.itemsize:
            raise ValueError(f"{path} holds {size} bytes, not those of {self.num_tokens} tokens")
        return np.memmap(path, dtype, mode="r") if self.num_tokens else np.empty(0, dtype)

    def _starts_between(self, first: int, end: int) -> np.ndarray:
        """Return the index of the first token of each sequence of these tokens."""
        if self._bos is None:
            return np.arange(first, end, self.seq_len)
        starts, start = [], first
        while start < end:
            starts.append(start)
            start += self._room(start)
        return np.array(starts, np.int64)

    def _with_labels(self, starts: np.ndarray) -> np.ndarray:
        """Return the sequences of a domain with a scored token: the mean loss of another would be NaN."""
        if self._scored is not None:
            return starts[np.array([self._count(start) > 0 for start in starts], bool)]
        return starts[:-1] if len(starts) and not self._count(starts[-1]) else starts

    def _domain_of(self, starts: Any) -> Any:
        return np.searchsorted(self._ends, starts, side="right")

    def _in_front(self, start: int) -> int:
        """Return 1 if a begin-of-text token is prepended to the sequence that starts here, else 0."""
        return int(self._bos is not None and self._ids[start] != self._bos)

    def _room(self, start: int) -> int:
        """Return how many tokens of the split fit in the sequence that starts here."""
        return self.seq_len - self._in_front(start)

    def _stop(self, start: int) -> int:
        return min(start + self._room(start), int(self._ends[self._domain_of(start)]))

    def _count(self, start: int) -> int:
        first, stop = start + 1 - self._in_front(start), self._stop(start)
        return stop - first if self._scored is None else int(self._scored[first:stop].sum())

    def members(self) -> list[np.ndarray]:
        """Return the sequences of each domain.

        Raises:
            ConfigError: if the corpus distinguishes no domains, or one has no sequence.
        """
        found = [np.flatnonzero(self.domain_of == i) for i in range(len(self.domains))]
        if self.domains == ("",):
            raise ConfigError("corpus.domain: must be set to draw sequences by domain, got null")
        for name, ours in zip(self.domains, found, strict=True):
            if not len(ours):
                raise ConfigError(f"corpus.domain: {name} must have 2 tokens to predict in every split, got fewer")
        return found

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self._start(index)
        place, front = slice(start, self._stop(start)), self._in_front(start)
        ids = torch.from_numpy(self._ids[place].astype(np.int64))
        labels = ids
        if self._scored is not None:
            labels = torch.where(torch.from_numpy(self._scored[place] > 0), ids, IGNORED)
        around = (front, self.seq_len - front - len(ids))
        inputs = torch.nn.functional.pad(ids, around, value=self.filler)
        if self._bos is not None:
            inputs[0] = self._bos
        return {"input_ids": inputs, "labels": torch.nn.functional.pad(labels, around, value=IGNORED)}

    def num_scored(self, index: int) -> int:
        """Return the number of scored tokens of a sequence; its first label is never predicted."""
        return self._count(self._start(index))

    def _start(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return int(self._starts[index])


def tokens_are_whole(folder: Path) -> bool:
    """Return whether a folder holds the complete token files of all splits."""
    try:
        return all(TokenSequences(folder, split, _ALL) is not None for split in SPLITS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_tokens(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    on_progress: Callable[[int], None] = lambda num_tokens: None,
    *,
    vocab_size: int | None = None,
) -> dict[str, int]:
    """Tokenize a corpus into `folder` and return the number of tokens of each split.

    `on_progress` is called with the number of train tokens so far. A special token spelled in the text, such as `</s>`,
    is encoded as text. `vocab_size` is the number of embeddings of the model that reads the ids.

    Raises:
        ConfigError: if a split is empty, an id has no embedding, or the text does not match its fingerprint.
    """
    encoder = Encoder.of(tokenizer, corpus)
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values(), default=0) < 2**16 else np.uint32)
    folder.mkdir(parents=True, exist_ok=True)
    reader, masked = Reader(corpus), corpus.loss_on != "all"
    with _SplitFiles(folder, dtype, masked) as files:
        passages = iter(reader)
        for part in encoder.encoded(passages):
            room = (corpus.max_tokens or 2**62) - files.num_tokens[part.split]
            ids = np.asarray(part.ids[:room], np.int64)
            _check_ids(ids, vocab_size, tokenizer)
            files.write(part.split, ids, part.scored[:room], part.domain)
            on_progress(files.num_tokens["train"])
            if corpus.max_tokens and files.num_tokens["train"] >= corpus.max_tokens:
                reader.finish(passages)
                break
    _log_what_was_met(reader)
    _check_splits(reader, files.num_tokens)
    domains = {} if corpus.domain is None else {"domains": files.group(folder)}
    about = domains | {
        "dtype": dtype.name, "eos": encoder.eos, "bos": encoder.bos, "masked": masked, "num_tokens": files.num_tokens,
        "num_documents": reader.num_documents, "num_duplicates": reader.num_duplicates, "num_skipped": reader.skipped,
    }  # fmt: skip
    for path in folder.glob("*.bin"):
        sync(path)
    write_json(folder / "tokens.json", about)
    return files.num_tokens


class _SplitFiles(contextlib.ExitStack):
    """Open files of all splits: ids and, with `masked`, whether each token is scored."""

    def __init__(self, folder: Path, dtype: np.dtype, masked: bool) -> None:
        super().__init__()
        self.num_tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._domains: dict[str, DomainRuns] = {split: DomainRuns() for split in SPLITS}
        self._dtype = dtype
        self._ids = self._opened(folder, "bin")
        self._scored = self._opened(folder, "scored.bin") if masked else None

    def _opened(self, folder: Path, suffix: str) -> dict[str, BinaryIO]:
        return {split: self.enter_context((folder / f"{split}.{suffix}").open("wb")) for split in SPLITS}

    def write(self, split: Split, ids: np.ndarray, scored: Sequence[bool], domain: str | None) -> None:
        """Append tokens to the files of a split."""
        if domain is not None:
            self._domains[split].add(domain, len(ids))
        self._ids[split].write(ids.astype(self._dtype).tobytes())
        if self._scored is not None:
            self._scored[split].write(np.asarray(scored, np.uint8).tobytes())
        self.num_tokens[split] += len(ids)

    def group(self, folder: Path) -> dict[str, dict[str, int]]:
        """Order the closed files by domain, and return the number of tokens of each split and domain.

        Raises:
            ConfigError: if a domain has no tokens in a split.
        """
        sizes = {split: runs.sizes() for split, runs in self._domains.items()}
        for split, found in sizes.items():
            for domain in sorted(set().union(*sizes.values())):
                if not found.get(domain):
                    raise ConfigError(f"corpus.domain: {domain} must have text in every split, got none in {split}")
            self._domains[split].group(folder / f"{split}.bin", self._dtype)
            if self._scored is not None:
                self._domains[split].group(folder / f"{split}.scored.bin", np.dtype(np.uint8))
        return sizes


def _check_splits(reader: Reader, num_tokens: Mapping[str, int]) -> None:
    most, documents = reader.corpus.max_tokens, reader.num_documents - reader.num_duplicates
    for name, count in num_tokens.items():
        if count:
            continue
        if most and num_tokens["train"] >= most and documents >= len(num_tokens):
            raise ConfigError(f"corpus.max_tokens: must let reading reach text of the {name} split, got {most}")
        raise ConfigError(
            f"corpus.path: {reader.corpus.path} leaves no text for the {name} split; it has {documents} different "
            "documents, each in one split (add some, or change corpus.holdout_fraction or corpus.separator)"
        )


def _check_ids(ids: np.ndarray, vocab_size: int | None, tokenizer: Any) -> None:
    if vocab_size is not None and len(ids) and ids.max() >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(int(ids.max()))
        raise ConfigError(
            f"teacher.model: token ids must be below the model's {vocab_size} embeddings, got {ids.max()} for {token!r}"
        )


def _log_what_was_met(reader: Reader) -> None:
    source = reader.corpus.path
    warn_of_skipped(source, reader.skipped)
    if reader.num_duplicates:
        log.warning(
            "corpus.path: %s: %d of %d documents are copies of an earlier one (in the same split)",
            source, reader.num_duplicates, reader.num_documents,
        )  # fmt: skip
