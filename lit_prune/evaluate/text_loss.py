"""Measure the loss of a model on a text by document: perplexity, bits per byte, and values for the paired bootstrap."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric

from lit_prune.config import ConfigError
from lit_prune.data import corpus
from lit_prune.data.tokens import IGNORED
from lit_prune.evaluate.perplexity import nats_of
from lit_prune.evaluate.text_task import Text
from lit_prune.evaluate.window_log import WindowLog
from lit_prune.evaluate.windows import Document, Window, batches, read, rolling_windows, windows
from lit_prune.losses.chunked import tokens_at_once
from lit_prune.models.lm_head import LMHead, head_of, last_states
from lit_prune.models.model_family import anatomy_of
from lit_prune.parallel.group import rank, world_size

COLUMNS = ("document", "nll", "tokens", "bytes", "words", "unread")
"""Columns of the document table: index in the source, nats, and the counts of `Document`."""


class DocumentLosses(Metric):
    """Losses by document, gathered from all ranks; parts of a document are summed."""

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64 holds counts exactly up to 2**53, and one state takes one gather.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, parts: pd.DataFrame) -> None:
        """Add documents, or parts of them, as rows with COLUMNS."""
        assert isinstance(self.rows, list)
        self.rows.append(torch.tensor(parts[list(COLUMNS)].to_numpy(float), device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return `lm_loss` in nats per token, `perplexity`, `bits_per_byte` and `word_perplexity`, float64."""
        _, nll, tokens, num_bytes, words, _ = self._all().sum(0)
        loss = nll / tokens
        return {
            "lm_loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": nll / num_bytes / math.log(2),
            "word_perplexity": (nll / words).exp(),
        }

    def table(self) -> pd.DataFrame:
        """Return the documents of all ranks with COLUMNS, ordered by number."""
        with self.sync_context():
            rows = self._all().cpu().numpy()
        found = pd.DataFrame(rows, columns=COLUMNS).groupby("document", as_index=False).sum()
        return found.astype({name: int for name in COLUMNS if name != "nll"})

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronise as `Metric.sync`; a rank without a document sends an empty table, not an empty float32 vector."""
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(self._none())
        super().sync(*args, **kwargs)

    def _all(self) -> Tensor:
        """Return the state [rows, COLUMNS], which is a list before a gather and one tensor after it."""
        return self.rows if isinstance(self.rows, Tensor) else torch.cat([self._none(), *self.rows])

    def _none(self) -> Tensor:
        return torch.empty(0, len(COLUMNS), dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class TextLoss:
    """Loss of a model on a text."""

    lm_loss: float
    """Nats per scored token."""
    perplexity: float
    """exp(lm_loss), comparable only between models with the same tokenizer."""
    bits_per_byte: float
    """Bits per UTF-8 byte of the scored text, independent of the tokenizer."""
    word_perplexity: float
    """exp of the nats per word of the scored text; white space separates words."""
    num_tokens: int
    num_bytes: int
    num_words: int
    num_unread: int
    """Bytes of visible characters that the tokenizer loses; they make bits per byte too low."""
    num_documents: int
    window: int
    """Tokens of a window."""
    stride: int
    """Tokens from one window to the next."""
    documents: pd.DataFrame
    """One row per document with COLUMNS; 0 for documents without a scored token."""

    @property
    def numbers(self) -> dict[str, float]:
        """Return all fields except the table and the windows."""
        beside = ("window", "stride", "documents")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in beside}


@torch.inference_mode()
def measure_text(
    model: Any, tokenizer: Any, text: Text, *, log: WindowLog | None = None,
    on_progress: Callable[[int], None] = lambda num_windows: None, batch_tokens: int = 8192,
) -> TextLoss:  # fmt: skip
    """Return the loss of a causal language model on a text, by document.

    Each document is read in windows. Each token is scored once, with a context of at least `window - stride + 1`
    tokens or all before it; the first token only if the tokenizer adds a begin token. Rolling windows
    and their counts of bytes and words are those of lm-eval. In a group of ranks each scores its share of the
    documents, and all return the result of all. Windows in `log` are not scored again; the others are added to it.

    Raises:
        ConfigError: if the text has changed, is missing or has nothing to score, a window or stride is longer than the
            model's positions, or the family is not supported.
        FloatingPointError: if the loss is NaN or infinite.
    """
    anatomy_of(model.config)
    reading = _Reading.of(text, model.config.max_position_embeddings)
    metric, was_training = DocumentLosses().to(next(model.parameters()).device), model.training
    model.eval()
    done, known = 0, {} if log is None else log.nats
    for documents, parts in _read_windows(tokenizer, text, reading):
        nll: defaultdict[int, float] = defaultdict(float)
        logged = [part for part in parts if part.place in known]
        for part in logged:
            nll[part.document.place] += known[part.place]
        done += len(logged)
        for batch in batches((part for part in parts if part.place not in known), batch_tokens):
            nats = _losses(model, batch).tolist()
            for part, its in zip(batch, nats, strict=True):
                nll[part.document.place] += its
            if log is not None:
                log.add((part.place for part in batch), nats)
            done += len(batch)
            on_progress(done)
        metric.update(_rows(documents, nll))
    model.train(was_training)
    return _summary(metric, text.source, reading)


def count_windows(positions: int, tokenizer: Any, text: Text) -> int:
    """Return the number of windows that `measure_text` scores for a model with `positions`.

    Raises:
        ConfigError: as `measure_text`.
    """
    return sum(len(parts) for _, parts in _read_windows(tokenizer, text, _Reading.of(text, positions)))


@dataclass(frozen=True)
class _Reading:
    """How documents are cut into windows for one model."""

    window: int
    stride: int
    rolling: bool

    @classmethod
    def of(cls, text: Text, positions: int) -> _Reading:
        window = text.window_for(positions)
        return cls(window, text.stride or window, text.windows == "rolling")

    def windows(self, document: Document) -> Iterable[Window]:
        """Return the windows of a document."""
        return rolling_windows(document, self.window) if self.rolling else windows(document, self.window, self.stride)


def _read_windows(tokenizer: Any, text: Text, reading: _Reading) -> Iterator[tuple[list[Document], list[Window]]]:
    """Yield groups of documents of this rank, each group with all its windows."""
    texts = enumerate(corpus.texts(corpus.pin(text.corpus), text.limit))
    for documents in read(tokenizer, itertools.islice(texts, rank(), None, world_size()), rolling=reading.rolling):
        yield documents, [part for document in documents for part in reading.windows(document)]


def _losses(model: Any, batch: Sequence[Window]) -> Tensor:
    """Return the nats of the scored tokens of each window, float64 [batch]."""
    device = next(model.parameters()).device
    ids = [torch.tensor(window.document.ids[window.start : window.stop + 1]) for window in batch]
    labels = [row[1:].clone() for row in ids]
    for row, window in zip(labels, batch, strict=True):
        row[: window.scored - window.start - 1] = IGNORED
    # Right padding: causal attention never reads it.
    inputs = pad_sequence([row[:-1] for row in ids], batch_first=True).to(device)
    successors = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
    scored = successors != IGNORED
    losses = torch.zeros(successors.shape, dtype=torch.float64, device=device)
    losses[scored] = _token_losses(last_states(model, inputs)[scored], successors[scored], head_of(model))
    return losses.sum(1)


def _token_losses(states: Tensor, successors: Tensor, head: LMHead) -> Tensor:
    """Return nats float64 [n] of successors int64 [n] from last states [n, width], computing logits in chunks."""
    size = tokens_at_once(len(head.weight), states.is_cuda)
    return torch.cat(
        [
            nats_of(head.logits(ours), next_ids)
            for ours, next_ids in zip(states.split(size), successors.split(size), strict=True)
        ]
    )


def _rows(documents: Sequence[Document], nll: Mapping[int, float]) -> pd.DataFrame:
    """Return the COLUMNS of documents."""
    rows = [(d.place, nll.get(d.place, 0.0), d.num_scored, d.num_bytes, d.num_words, d.num_unread) for d in documents]
    return pd.DataFrame(rows, columns=COLUMNS)


def _summary(metric: DocumentLosses, source: str, reading: _Reading) -> TextLoss:
    table = metric.table()
    sums = table.sum()
    if not sums["tokens"]:
        raise ConfigError(f"--corpus: must have a document of at least two tokens, got {source}")
    found = {name: value.item() for name, value in metric.compute().items()}
    if not math.isfinite(found["lm_loss"]):
        raise FloatingPointError(f"the loss is {found['lm_loss']}")
    return TextLoss(
        **found,
        num_tokens=int(sums["tokens"]),
        num_bytes=int(sums["bytes"]),
        num_words=int(sums["words"]),
        num_unread=int(sums["unread"]),
        num_documents=len(table),
        window=reading.window,
        stride=reading.stride,
        documents=table,
    )
