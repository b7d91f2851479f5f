"""Compute the language-model loss of packed sequences: negative log-likelihood, summed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from lit_prune.data.tokens import IGNORED
from lit_prune.losses.probabilities import negative_log_likelihood
from lit_prune.losses.sequence_losses import SequenceLosses
from lit_prune.parallel.group import any_rank, interleaved

_LOGITS_AT_ONCE = 2**26
_IDLE = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "labels": torch.zeros(1, 2, dtype=torch.int64)}
"""What a rank reads while only others have batches left."""


def nats_of(logits: Tensor, successors: Tensor) -> Tensor:
    """Return the negative log-likelihood float64 [n] of successors int64 [n], 0 where ignored; logits [n, vocab]."""
    return negative_log_likelihood(logits.float(), successors).double()


OnBatch = Callable[[Tensor, Tensor, Tensor], None]
"""(input ids, logits, labels) of a batch, on the model's device."""


@torch.no_grad()  # not inference_mode: the weights that FSDP gathers in it could not be trained later
def sequence_losses(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], on_batch: OnBatch = lambda ids, logits, labels: None
) -> SequenceLosses:
    """Return the nats of each packed sequence under a causal language model.

    In a group of ranks, `batches` are the share of this one, every world_size-th sequence, and all get the losses of
    all sequences in their order. `on_batch` is called with every batch, for other measurements in the same pass; at the
    end also with batches of one row that are not counted, since all ranks run a sharded model equally often.
    """
    device = next(model.parameters()).device
    nats = [torch.empty(0, dtype=torch.float64, device=device)]  # a rank may have no sequence
    tokens = [torch.empty(0, dtype=torch.int64, device=device)]
    own = 0
    for batch in _in_step(batches):
        own += 0 if batch is _IDLE else len(batch["labels"])
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        nats.append(_nats_by_sequence(logits, labels))
        tokens.append((labels[:, 1:] != IGNORED).sum(1))
        on_batch(ids, logits, labels)
    return SequenceLosses(*(interleaved(torch.cat(rows)[:own].cpu()) for rows in (nats, tokens)))


def _in_step(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield batches, then idle ones as long as another rank has batches."""
    for batch in batches:
        any_rank(True)
        yield batch
    while any_rank(False):
        yield _IDLE


def _nats_by_sequence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return nats float64 [batch] from logits [batch, seq, vocab] and labels int64 [batch, seq], unshifted.

    torchmetrics' Perplexity takes the logarithm of a softmax, which underflows and is 1.4 % off in bfloat16.
    """
    successors, flat = labels[:, 1:], logits[:, :-1].flatten(0, 1)
    size = max(1, _LOGITS_AT_ONCE // flat.shape[-1])
    parts = zip(flat.split(size), successors.flatten().split(size), strict=True)
    return torch.cat([nats_of(ours, next_ids) for ours, next_ids in parts]).view(successors.shape).sum(1)


def language_model_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[float, int]:
    """Return the nats per token of a causal language model and the number of scored tokens, over packed sequences."""
    found = sequence_losses(model, batches)
    return found.mean, found.num_tokens
