"""Learn the probabilities of binary masks from the loss of sampled masks alone: no gradient passes the model.

Source: Bypass Back-propagation, arXiv 2406.10576.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.pruning.gating import gated
from lit_prune.pruning.learned.mask_learner import MaskLearner, next_token_loss
from lit_prune.pruning.learned.schedules import cosine, scheduled
from lit_prune.pruning.units import UnitSpace

Loss = Callable[[Tensor, dict[str, Any]], Tensor]


class PolicyGradient(MaskLearner):
    """Minimise E[L(m)] over the probabilities s of Bernoulli masks m by REINFORCE.

    A step draws `num_samples` masks and descends along the mean of (L(m) - delta) (m - s) / (s (1 - s)), where delta is
    a moving average of the losses of about `window` steps. The probabilities are then projected to the budget. The
    variant "official" of the authors' code divides by the root of s (1 - s), and the sum over masks by their number
    minus one. `loss` is L, (mask [units], batch) -> scalar, and `project` maps probabilities [units] to allowed ones.
    """

    baseline: Tensor

    def __init__(
        self, model: Any, start: Tensor, loss: Loss, project: Callable[[Tensor], Tensor], *, variant: str,
        num_samples: int, window: int, lr: float, max_steps: int,
    ) -> None:  # fmt: skip
        super().__init__(model)
        self.probabilities = nn.Parameter(start.float())
        self.register_buffer("baseline", torch.tensor(float("nan")))
        self._loss, self._project, self._lr, self._max_steps = loss, project, lr, max_steps
        self._num_samples, self._window, self._official = num_samples, window, variant == "official"

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return a scalar whose gradient with respect to the probabilities is the policy gradient."""
        s = self.probabilities.detach()
        masks = torch.bernoulli(s.expand(self._num_samples, -1))
        with torch.no_grad():
            losses = torch.stack([self._loss(mask, batch) for mask in masks])
            newest = 1 / self._window if self.baseline.isfinite() else 1.0
            self.baseline.copy_(self.baseline.nan_to_num() * (1 - newest) + losses.mean() * newest)
            variance = s * (1 - s) + _TINY
            directions = (masks - s) / (variance.sqrt() if self._official else variance)
            count = max(1, self._num_samples - 1) if self._official else self._num_samples
            gradient = (losses - self.baseline) @ directions / count
        self.terms = {"loss": losses.mean(), "baseline": self.baseline.clone(), "kept": s.mean()}
        return self.probabilities @ gradient

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Descend and project."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.probabilities.copy_(self._project(self.probabilities))

    def configure_optimizers(self) -> Any:
        """Return plain gradient descent with a cosine schedule to 0."""
        return scheduled(torch.optim.SGD([self.probabilities], lr=self._lr), cosine(self._max_steps))


_TINY = 1e-7
"""Keeps the variance of a certain mask above 0."""


def masked_loss(model: Any, space: UnitSpace) -> Loss:
    """Return L of `PolicyGradient`: the language-model loss of a model without the units whose mask is 0."""

    def loss(mask: Tensor, batch: dict[str, Any]) -> Tensor:
        with gated(model, space.gates(mask)):
            return next_token_loss(model, batch)

    return loss
