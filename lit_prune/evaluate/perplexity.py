"""Language-model loss of packed sequences: summed negative log-likelihood in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_prune.data.tokens import IGNORED
from lit_prune.losses.probabilities import negative_log_likelihood
from lit_prune.losses.sequence_losses import SequenceLosses

_LOGITS_AT_ONCE = 2**26


def nats_of(logits: Tensor, successors: Tensor) -> Tensor:
    """Return the negative log-likelihood float64 [n] of successors int64 [n], 0 where ignored; logits [n, vocab]."""
    return negative_log_likelihood(logits.float(), successors).double()


class LanguageModelLoss(Metric):
    """Next-token cross-entropy in nats, summed in float64 by sequence and gathered from all ranks.

    torchmetrics' own Perplexity takes the softmax of all logits before the logarithm: it underflows, and is 1.4 % off
    in bfloat16.
    """

    full_state_update = False
    nll: list[Tensor]
    num_tokens: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", [], dist_reduce_fx="cat")
        self.add_state("num_tokens", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits [batch, seq, vocab] and labels int64 [batch, seq], unshifted, ignored where they are -100."""
        successors = labels[:, 1:]
        flat = logits[:, :-1].flatten(0, 1)
        size = max(1, _LOGITS_AT_ONCE // flat.shape[-1])
        parts = zip(flat.split(size), successors.flatten().split(size), strict=True)
        nats = torch.cat([nats_of(ours, next_ids) for ours, next_ids in parts])
        self.nll.append(nats.view(successors.shape).sum(1))
        self.num_tokens.append((successors != IGNORED).sum(1))

    def compute(self) -> Tensor:
        """Nats per token, float64."""
        return dim_zero_cat(self.nll).sum() / dim_zero_cat(self.num_tokens).sum()

    @property
    def losses(self) -> SequenceLosses:
        """Return the nats of each sequence that this rank has added."""
        return SequenceLosses(dim_zero_cat(self.nll).cpu(), dim_zero_cat(self.num_tokens).cpu())


See = Callable[[Tensor, Tensor, Tensor], None]
"""(input ids, logits, labels) of a batch, on the model's device."""


@torch.inference_mode()
def sequence_losses(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], see: See = lambda ids, logits, labels: None
) -> SequenceLosses:
    """Return the nats of each packed sequence under a causal language model.

    `see` is called with every batch, to measure something else in the same pass.
    """
    device = next(model.parameters()).device
    metric = LanguageModelLoss().to(device)
    for batch in batches:
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        metric.update(logits, labels)
        see(ids, logits, labels)
    return metric.losses


def language_model_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[float, int]:
    """Return the nats per token of a causal language model and the number of scored tokens, over packed sequences."""
    found = sequence_losses(model, batches)
    return found.mean, found.num_tokens
