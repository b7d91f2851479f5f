"""Gradient accumulation for objectives whose weights are ratios of terms over the whole optimizer step.

A weight that is a ratio of two terms ("dynamic", "balanced") is known only after the last micro-batch of all ranks. The
total gradient is linear in it, so the unweighted gradient of such a term is accumulated separately until then.

With more than one micro-batch or rank each such term costs a second backward pass of the student, and memory for one
gradient of its trained parameters. Measuring the ratio in a first pass without gradients would instead cost a second
forward pass of student and teacher, which need not be cheaper, and would draw other dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.config import Distill
from lit_prune.distill.sharding import is_sharded, local
from lit_prune.losses.weighting import ratios
from lit_prune.parallel.group import mean_over_ranks

_FIXED = ""
"""Key, among the sums, of the weighted sum of the terms whose weights are numbers."""


@dataclass(frozen=True)
class Compared:
    """The objective on one micro-batch, without the terms that are weighted by a ratio; all values are scalars."""

    fixed: Tensor
    """The weighted sum of the terms whose weights are numbers, with gradient."""
    measured: dict[str, Tensor]
    """The unweighted terms whose weights are ratios, by name, with gradients."""
    terms: dict[str, Tensor]
    """Every term, unweighted, by name."""

    def weighed(self, distill: Distill) -> dict[str, Tensor]:
        """Return the terms and `loss`, with ratios computed from this micro-batch alone."""
        loss = self.fixed
        for name, ratio in ratios(distill, self.fixed, self.terms).items():
            loss = loss + ratio * self.measured[name]
        return {**self.terms, "loss": loss}


class Accumulation:
    """Sums of terms and gradients over the `parts` micro-batches of an optimizer step, and their means over ranks."""

    def __init__(self, distill: Distill, parts: int) -> None:
        self.distill, self.parts = distill, parts
        self._sums: dict[str, Tensor] = {}
        self._gradients: dict[str, list[Tensor | None]] = {}

    def add(self, found: Compared, position: int) -> dict[str, Tensor]:
        """Add the terms of the micro-batch at `position` of the run; return the step's terms so far, with `loss`."""
        if position % self.parts == 0:
            self._sums, self._gradients = {}, {}
        for name, value in {**found.terms, _FIXED: found.fixed}.items():
            self.note(name, value)
        return self._weighed()[0]

    def note(self, name: str, value: Tensor) -> Tensor:
        """Add a term of the newest micro-batch; return its sum over the step so far."""
        self._sums[name] = self._sums.get(name, 0) + value.detach() / self.parts
        return self._sums[name]

    def differentiate(self, measured: dict[str, Tensor], parameters: Iterable[nn.Parameter]) -> None:
        """Accumulate the gradients of terms weighted by a ratio, apart from `.grad`; the graph is retained."""
        trained = [p for p in parameters if p.requires_grad]
        for name, term in measured.items():
            found = _gradients(term / self.parts, trained)
            kept = self._gradients.setdefault(name, [None] * len(found))
            for place, gradient in enumerate(found):
                if gradient is not None:
                    kept[place] = gradient if kept[place] is None else kept[place] + gradient  # type: ignore[operator]

    def conclude(self, parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
        """Return the terms of the step over all ranks, with `loss`.

        Adds the separate gradients to `.grad` of the parameters, each weighted by its ratio over the step.
        """
        means = mean_over_ranks(torch.stack(list(self._sums.values())))
        self._sums = dict(zip(self._sums, means, strict=True))
        terms, weights = self._weighed()
        trained = [p for p in parameters if p.requires_grad]
        for name, kept in self._gradients.items():
            for parameter, gradient in zip(trained, kept, strict=True):
                if gradient is not None:
                    weighted = mean_over_ranks(gradient) if not is_sharded(gradient) else gradient
                    local(weighted).mul_(weights[name])
                    parameter.grad = weighted if parameter.grad is None else parameter.grad.add_(weighted)
        self._gradients = {}
        return terms

    def _weighed(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms and `loss` of the step, and its ratios."""
        terms = {name: value for name, value in self._sums.items() if name != _FIXED}
        loss = self._sums[_FIXED]
        weights = ratios(self.distill, loss, terms)
        for name, weight in weights.items():
            loss = loss + weight * terms[name]
        return {**terms, "loss": loss}, weights


def _gradients(term: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Return the gradient of a term by each parameter, of sharded ones averaged over ranks; the graph is retained."""
    if not any(map(is_sharded, parameters)):
        return torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    before = [parameter.grad for parameter in parameters]  # FSDP puts gradients of shards nowhere but there
    for parameter in parameters:
        parameter.grad = None
    term.backward(retain_graph=True)
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return found
