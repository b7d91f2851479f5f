"""One optimizer step in several micro-batches: terms, and gradients whose weight is known only at its end.

A weight that is a ratio of two terms ("dynamic", "balanced") is a ratio over the whole step. The gradient is linear in
it, so that the gradient of such a term is kept apart, unweighted, until the last micro-batch.

Cost for each such term, with more than one micro-batch: a second backward pass of the student, and one gradient of its
trained parameters in memory. A first pass without gradient that only measures the ratio would cost a second forward
pass of the student and of the teacher, which need not be cheaper, and would draw other dropout masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.config import Distill
from lit_prune.losses.weighting import ratios

_FIXED = ""
"""Among the sums: that of the terms whose weights are numbers."""


@dataclass(frozen=True)
class Compared:
    """The objective on one micro-batch, before the terms that are weighted by a ratio are added; scalars."""

    fixed: Tensor
    """The sum of the terms whose weights are numbers; has the gradient."""
    measured: dict[str, Tensor]
    """The terms whose weights are ratios, by name, unweighted; with gradients."""
    terms: dict[str, Tensor]
    """Each term by itself, by name."""

    def weighed(self, distill: Distill) -> dict[str, Tensor]:
        """Return the terms and `loss`, with the ratios of these terms."""
        loss = self.fixed
        for name, ratio in ratios(distill, self.fixed, self.terms).items():
            loss = loss + ratio * self.measured[name]
        return {**self.terms, "loss": loss}


class Accumulation:
    """Sums over the `parts` micro-batches of an optimizer step."""

    def __init__(self, distill: Distill, parts: int) -> None:
        self.distill, self.parts = distill, parts
        self._sums: dict[str, Tensor] = {}
        self._gradients: dict[str, list[Tensor | None]] = {}

    def add(self, found: Compared, position: int) -> dict[str, Tensor]:
        """Add the terms of the micro-batch at `position` of the run; return those of the step so far, with `loss`."""
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
        """Add the gradients of terms weighted by a ratio, which stay here; the graph is kept."""
        trained = [p for p in parameters if p.requires_grad]
        for name, term in measured.items():
            found = torch.autograd.grad(term / self.parts, trained, retain_graph=True, allow_unused=True)
            kept = self._gradients.setdefault(name, [None] * len(found))
            for place, gradient in enumerate(found):
                if gradient is not None:
                    kept[place] = gradient if kept[place] is None else kept[place] + gradient  # type: ignore[operator]

    def conclude(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the kept gradients to those of the parameters, each weighted by its ratio over the step."""
        weights = self._weighed()[1]
        trained = [p for p in parameters if p.requires_grad]
        for name, kept in self._gradients.items():
            for parameter, gradient in zip(trained, kept, strict=True):
                if gradient is not None:
                    weighted = gradient.mul_(weights[name])
                    parameter.grad = weighted if parameter.grad is None else parameter.grad.add_(weighted)
        self._gradients = {}

    def _weighed(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms of the step and `loss`, and the ratios."""
        terms = {name: value for name, value in self._sums.items() if name != _FIXED}
        loss = self._sums[_FIXED]
        weights = ratios(self.distill, loss, terms)
        for name, weight in weights.items():
            loss = loss + weight * terms[name]
        return {**terms, "loss": loss}, weights
