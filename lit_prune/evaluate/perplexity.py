"""Language-model loss of packed sequences: summed negative log-likelihood in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_prune.data.tokens import IGNORED
from lit_prune.losses.probabilities import negative_log_likelihood

_LOGITS_AT_ONCE = 2**26


def nats_of(logits: Tensor, successors: Tensor) -> Tensor:
    """Return the negative log-likelihood float64 [n] of successors int64 [n], 0 where ignored; logits [n, vocab]."""
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
            self.nll += nats_of(ours, next_ids).sum()
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
    """Return the nats per token of a causal language model and the number of scored tokens, over packed sequences.

    `see` is called with every batch, to measure something else in the same pass.
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
    """Return the number of tokens with a successor to predict."""
    return sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
