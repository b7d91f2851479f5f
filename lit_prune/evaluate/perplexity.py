"""Language-model loss: summed negative log-likelihood in float64, of packed blocks or of a text's documents.

Packed blocks are what cells are compared by; a text by document is for what is told of one checkpoint: bits per byte,
which does not depend on the tokenizer, and the losses that checkpoints are compared by over the same documents.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import corpus
from lit_prune.data.tokens import IGNORED
from lit_prune.evaluate.text_task import DEFAULT_WINDOW
from lit_prune.evaluate.window_log import WindowLog
from lit_prune.evaluate.windows import Document, Window, batches, read, rolling_windows, windows
from lit_prune.losses.chunked import tokens_at_once
from lit_prune.losses.probabilities import negative_log_likelihood
from lit_prune.models.lm_head import LMHead, head_of, last_states
from lit_prune.models.model_family import anatomy_of

_LOGITS_AT_ONCE = 2**26


def _nats(logits: Tensor, successors: Tensor) -> Tensor:
    """Negative log-likelihood float64 [n] of successors int64 [n], 0 where they are ignored; logits [n, vocab]."""
    return negative_log_likelihood(logits.float(), successors).double()


class LanguageModelLoss(Metric):
    """Mean next-token cross-entropy in nats, summed in float64 and reduced over ranks.

    torchmetrics' own Perplexity takes the softmax of all logits before the logarithm: it underflows, and is 1.4 % off
    in bfloat16.
    """

    full_state_update = False
    nll: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [batch, seq, vocab] and labels int64 [batch, seq], unshifted, ignored where they are -100."""
        successors = labels[:, 1:].flatten()
        flat = logits[:, :-1].flatten(0, 1)
        size = max(1, _LOGITS_AT_ONCE // flat.shape[-1])
        for ours, next_ids in zip(flat.split(size), successors.split(size), strict=True):
            self.nll += _nats(ours, next_ids).sum()
        self.num_tokens += (successors != IGNORED).sum()

    def compute(self) -> Tensor:
        """Nats per token, float64."""
        return self.nll / self.num_tokens


See = Callable[[Tensor, Tensor, Tensor], None]
"""(input ids, logits, labels) of a batch, on the model's device."""


@torch.inference_mode()
def language_model_loss(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], see: See = lambda ids, logits, labels: None
) -> tuple[float, int]:
    """Nats per token of a causal language model and the number of tokens scored, over batches of packed blocks.

    `see` is shown every batch, for what else there is to measure on the same pass.
    """
    device = next(model.parameters()).device
    metric = LanguageModelLoss().to(device)
    for batch in batches:
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        metric.update(logits, labels)
        see(ids, logits, labels)
    return metric.compute().item(), int(metric.num_tokens)


def num_scored(batches: Iterable[dict[str, Tensor]]) -> int:
    """Tokens that have a successor to predict."""
    return sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)


COLUMNS = ("document", "nll", "tokens", "bytes", "words", "unread")
"""Of a table of documents: place in the source, nats, and what the fields of `Document` count."""


class DocumentLosses(Metric):
    """Losses of documents, each known by its number, gathered from all ranks; its parts are added up."""

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        # Counts as float64 are exact up to 2**53, and one state is gathered in one go.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, parts: pd.DataFrame) -> None:
        """Add documents, or parts of them, with COLUMNS."""
        assert isinstance(self.rows, list)
        self.rows.append(torch.tensor(parts[list(COLUMNS)].to_numpy(float), device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """`lm_loss` in nats per token, `perplexity`, `bits_per_byte` and `word_perplexity`, float64."""
        _, nll, tokens, num_bytes, words, _ = self._all().sum(0)
        loss = nll / tokens
        return {
            "lm_loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": nll / num_bytes / math.log(2),
            "word_perplexity": (nll / words).exp(),
        }

    def table(self) -> pd.DataFrame:
        """The documents of all ranks with COLUMNS, a row each, in the order of their numbers."""
        with self.sync_context():
            rows = self._all().cpu().numpy()
        found = pd.DataFrame(rows, columns=COLUMNS).groupby("document", as_index=False).sum()
        return found.astype({name: int for name in COLUMNS if name != "nll"})

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As `Metric.sync`; a rank without a document sends an empty table, not an empty float32 vector."""
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(self._none())
        super().sync(*args, **kwargs)

    def _all(self) -> Tensor:
        """[rows, COLUMNS]; gathered, the state is one tensor already."""
        return self.rows if isinstance(self.rows, Tensor) else torch.cat([self._none(), *self.rows])

    def _none(self) -> Tensor:
        return torch.empty(0, len(COLUMNS), dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class TextLoss:
    """What a model makes of a text."""

    lm_loss: float
    """Nats per scored token."""
    perplexity: float
    """exp of it: comparable between models of one tokenizer only."""
    bits_per_byte: float
    """Over the UTF-8 bytes of the scored text, whatever its tokens."""
    word_perplexity: float
    """exp of nats per word of the scored text, words parted by white space."""
    num_tokens: int
    num_bytes: int
    num_words: int
    num_unread: int
    """Bytes of visible characters that the tokenizer loses: cheap for the model, so that bits per byte are too few."""
    num_documents: int
    window: int
    """Tokens read at once."""
    stride: int
    """Tokens from one window to the next."""
    documents: pd.DataFrame
    """COLUMNS; those of a document without a scored token are 0."""

    @property
    def numbers(self) -> dict[str, float]:
        """All but the table and the windows."""
        beside = ("window", "stride", "documents")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in beside}


@torch.inference_mode()
def measure_text(
    model: Any,
    tokenizer: Any,
    source: str,
    *,
    column: str | None = None,
    fingerprint: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    rolling: bool = False,
    log: WindowLog | None = None,
    tell: Callable[[int], None] | None = None,
    batch_tokens: int = 8192,
) -> TextLoss:
    """Loss of a causal language model on the first `limit` documents of a text, a file, folder or hub data set.

    Each document is read in windows of `window` tokens, by default as many as the model has positions but not more than
    2,048, which start `stride` tokens apart, by default `window`; each token is scored once, from at least
    `window - stride + 1` tokens or all before it. The first of a document is scored if the tokenizer puts a begin token
    before it. With `rolling` the windows and the counts of bytes and words are those of lm-eval. Where processes are
    joined by torch.distributed each scores its share, and all get the whole.

    With a `fingerprint` (`lit_prune.data.corpus.fingerprint`) the text must be the one it is of.

    Windows that `log` holds are not scored again, and it gets the others. `tell` is called with the number of windows
    scored so far.

    Raises:
        ConfigError: no such text or column, nothing to score in it, a window or stride that the model cannot have, or
            a family that is not supported.
    """
    anatomy_of(model.config)
    how = _checked(model.config.max_position_embeddings, window, stride, limit, rolling)
    metric, was_training = DocumentLosses().to(next(model.parameters()).device), model.training
    model.eval()
    done = 0
    for documents, parts in _read_windows(tokenizer, _documents(source, column, fingerprint, limit), how):
        nll: defaultdict[int, float] = defaultdict(float)
        scored = {} if log is None else log.nats
        for part in parts:
            if part.place in scored:
                nll[part.document.place] += scored[part.place]
                done += 1
        for batch in batches((part for part in parts if part.place not in scored), batch_tokens):
            nats = _losses(model, batch).tolist()
            for part, its in zip(batch, nats, strict=True):
                nll[part.document.place] += its
            if log is not None:
                log.add((part.place for part in batch), nats)
            done += len(batch)
            if tell is not None:
                tell(done)
        metric.update(_rows(documents, nll))
    model.train(was_training)
    return _summary(metric, source, how)


def count_windows(
    positions: int,
    tokenizer: Any,
    source: str,
    *,
    column: str | None = None,
    fingerprint: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    rolling: bool = False,
) -> int:
    """Number of windows that `measure_text` scores for a model of so many positions.

    Raises:
        ConfigError: as `measure_text`.
    """
    how = _checked(positions, window, stride, limit, rolling)
    return sum(len(parts) for _, parts in _read_windows(tokenizer, _documents(source, column, fingerprint, limit), how))


@dataclass(frozen=True)
class _Windows:
    """How documents are cut into windows."""

    window: int
    stride: int
    rolling: bool


def _documents(
    source: str, column: str | None, fingerprint: str | None, limit: int | None
) -> Iterator[tuple[int, str]]:
    """The first documents of a text by their places, of which this process has its share."""
    text = corpus.pin(Corpus(source=source, column=column or "text", fingerprint=fingerprint))
    return _share(enumerate(corpus.texts(text, limit)))


def _read_windows(
    tokenizer: Any, texts: Iterable[tuple[int, str]], how: _Windows
) -> Iterator[tuple[list[Document], list[Window]]]:
    """Documents, a group at a time, and all their windows."""
    for documents in read(tokenizer, texts, rolling=how.rolling):
        yield (
            documents,
            [
                part
                for document in documents
                for part in (
                    rolling_windows(document, how.window) if how.rolling else windows(document, how.window, how.stride)
                )
            ],
        )


def _checked(positions: int, window: int | None, stride: int | None, limit: int | None, rolling: bool) -> _Windows:
    """The windows to use."""
    window = min(positions, DEFAULT_WINDOW) if window is None else window
    if window < 1:
        raise ConfigError(f"window: {window} tokens asked for, at least 1 is needed")
    if window > positions:
        raise ConfigError(f"window: {window} tokens asked for, the model has {positions} positions")
    if stride is not None and not 1 <= stride <= window:
        raise ConfigError(f"stride: {stride} tokens asked for, it lies between 1 and the window, {window}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} documents asked for, at least 1 is needed")
    if rolling and stride is not None:
        raise ConfigError(f"stride: must be unset where windows are rolling, got {stride}")
    return _Windows(window, stride or window, rolling)


def _share(documents: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Every n-th of n processes that are joined, from its rank on."""
    if not distributed.is_initialized():
        return documents
    return itertools.islice(documents, distributed.get_rank(), None, distributed.get_world_size())


def _losses(model: Any, batch: Sequence[Window]) -> Tensor:
    """Nats of the scored tokens of each window, float64 [batch]."""
    device = next(model.parameters()).device
    ids = [torch.tensor(window.document.ids[window.start : window.stop + 1]) for window in batch]
    labels = [row[1:].clone() for row in ids]
    for row, window in zip(labels, batch, strict=True):
        row[: window.scored - window.start - 1] = IGNORED
    # What fills a row up stands behind its tokens, which do not look ahead.
    inputs = pad_sequence([row[:-1] for row in ids], batch_first=True).to(device)
    successors = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
    scored = successors != IGNORED
    losses = torch.zeros(successors.shape, dtype=torch.float64, device=device)
    losses[scored] = _token_losses(last_states(model, inputs)[scored], successors[scored], head_of(model))
    return losses.sum(1)


def _token_losses(states: Tensor, successors: Tensor, head: LMHead) -> Tensor:
    """Nats float64 [n] of successors int64 [n] from last states [n, width], the logits of a few at a time."""
    size = tokens_at_once(len(head.weight), states.is_cuda)
    return torch.cat(
        [
            _nats(head.logits(ours), next_ids)
            for ours, next_ids in zip(states.split(size), successors.split(size), strict=True)
        ]
    )


def _rows(documents: Sequence[Document], nll: Mapping[int, float]) -> pd.DataFrame:
    """COLUMNS of documents."""
    rows = [(d.place, nll.get(d.place, 0.0), d.num_scored, d.num_bytes, d.num_words, d.num_unread) for d in documents]
    return pd.DataFrame(rows, columns=COLUMNS)


def _summary(metric: DocumentLosses, source: str, how: _Windows) -> TextLoss:
    table = metric.table()
    sums = table.sum()
    if not sums["tokens"]:
        raise ConfigError(f"text: {source} holds no document of two tokens, so there is nothing to score")
    return TextLoss(
        **{name: value.item() for name, value in metric.compute().items()},
        num_tokens=int(sums["tokens"]),
        num_bytes=int(sums["bytes"]),
        num_words=int(sums["words"]),
        num_unread=int(sums["unread"]),
        num_documents=len(table),
        window=how.window,
        stride=how.stride,
        documents=table,
    )
