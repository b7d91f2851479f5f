"""Score variants of layers by replacing one at a time (Puzzle, arXiv 2411.19146)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.criteria import Scores
from lit_prune.importance.layer_ablation import next_token_losses, sequences_at_once
from lit_prune.losses.logit import logit_losses
from lit_prune.models.residual_stream import ResidualStream
from lit_prune.pruning.masked import masked
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.variants import Library


@torch.inference_mode()
def effects_of(
    model: Any, plans: Sequence[tuple[int, PrunePlan]], batch: dict[str, Tensor], measure: Literal["kl", "loss"],
    on_progress: Callable[[int], None], measured: Callable[[Callable[[], float]], float] = lambda measure: measure(),
) -> list[float]:  # fmt: skip
    """Return how much each plan changes the output of the model, in nats per scored token.

    `kl` is KL(whole || pruned) of the next-token distributions, `loss` the increase of the language-model loss. Each
    plan comes with the first layer that it changes; the layers before it are not computed again. `batch` is
    {`input_ids`, `labels`: int64 [sequences, seq]}; `on_progress` gets the number of sequences read, summed over plans.
    `measured` may know changes from an interrupted run.
    """
    stream, sums, count, done = ResidualStream(model), [0.0] * len(plans), 0, 0
    size = sequences_at_once(batch["input_ids"], model.config.vocab_size)
    for ids, labels in zip(batch["input_ids"].split(size), batch["labels"].split(size), strict=True):
        part = _Part(model, stream, ids, labels, (labels[:, 1:] != IGNORED).flatten())
        for i, (first, plan) in enumerate(plans):
            sums[i] += measured(functools.partial(part.distance, first, plan, measure))
            done += len(ids)
            on_progress(done)
        count += int(part.scored.sum())
    return [total / count for total in sums]


@dataclass(frozen=True)
class _Part:
    """Sequences that fit the memory limit together, and the output of the whole model on them."""

    model: Any
    stream: ResidualStream
    ids: Tensor
    labels: Tensor
    scored: Tensor

    @functools.cached_property
    def whole(self) -> tuple[list[Tensor], _Output]:
        """The input of every layer, and the output."""
        with self.stream.reading() as states:
            output = _Output(self.model, self.ids, self.labels, self.scored)
        return states, output

    def distance(self, first: int, plan: PrunePlan, measure: str) -> float:
        """Return how much a plan, which changes no layer before `first`, changes the output, summed over tokens."""
        states, whole = self.whole
        with self.stream.resuming(states[first], first), masked(self.model, plan):
            return _Output(self.model, self.ids, self.labels, self.scored).distance(whole, measure)


class _Output:
    """The logits of a model at scored positions, and the sum of its losses."""

    def __init__(self, model: Any, ids: Tensor, labels: Tensor, scored: Tensor) -> None:
        logits = model(input_ids=ids, use_cache=False).logits
        self.logits = logits[:, :-1].flatten(0, 1)[scored]
        self.loss = float(double(next_token_losses(logits, labels)).sum())

    def distance(self, whole: _Output, measure: str) -> float:
        if measure == "loss":
            return self.loss - whole.loss
        return float(double(logit_losses["kld"](self.logits, whole.logits)).sum())


def search(
    model: Any, library: Library, scores: Scores, limit: int, batch: dict[str, Tensor], measure: Literal["kl", "loss"],
    counter: Callable[[str, int, str], Callable[[int], None]], measured: Callable[[Callable[[], float]], float],
) -> PrunePlan:  # fmt: skip
    """Measure every variant in every layer and return the best choice within the limit; `scores` rank the units."""
    plans = list(library.replacements(scores, model.config))
    count = counter("replacing layers", len(plans) * len(batch["input_ids"]), "sequence")
    found = effects_of(model, plans, batch, measure, count, measured)
    return library.plan(scores, library.choose(found, limit), model.config)
