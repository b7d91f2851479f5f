"""Learn the scores of units, and for each layer and kind a threshold that says how many of them stay.

Source: MLPruning, arXiv 2105.14636.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.losses.chunked import head_losses
from lit_prune.losses.logit import logit_losses
from lit_prune.losses.targets import HeadTarget
from lit_prune.models.lm_head import head_of, last_states
from lit_prune.models.residual_stream import ResidualStream
from lit_prune.pruning.gating import gated
from lit_prune.pruning.learned.mask_learner import MaskLearner, scored_tokens
from lit_prune.pruning.learned.schedules import linear, scheduled
from lit_prune.pruning.units import UnitSpace


class ThresholdLearner(MaskLearner):
    """Train a copy of a model, scores and thresholds to imitate the unpruned model with fewer parameters.

    Of n units of a layer and kind, the ceil(sigmoid(t) n) with the highest scores stay. The gradient of a mask goes to
    the scores unchanged, and its sum over the units that stay to the threshold t. `weight` times the square of the
    excess of the expected parameters over the budget is added to the loss.
    """

    def __init__(
        self, model: Any, copy: Any, space: UnitSpace, *, lr: float, score_lr: float, weight: float, ce_weight: float,
        temperature: float, max_steps: int,
    ) -> None:  # fmt: skip
        super().__init__(model)
        self.student, self.space = copy.train(), space
        self.scores = nn.Parameter(torch.zeros(space.size))
        layers = space.whole.num_hidden_layers
        self.thresholds = nn.Parameter(torch.full((2, layers), _START))
        self._lr, self._score_lr, self._weight, self._max_steps = lr, score_lr, weight, max_steps
        self._ce_weight, self._temperature = ce_weight, temperature
        self._streams = ResidualStream(model), ResidualStream(copy)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of the masked copy plus the penalty."""
        ids, scored, successors = scored_tokens(batch)
        with torch.no_grad(), self._streams[0].reading() as theirs:
            target = HeadTarget(last_states(self.model, ids)[:, :-1][scored], head_of(self.model))
        with self._streams[1].reading() as ours, gated(self.student, self.space.gates(self._mask())):
            last = last_states(self.student, ids)[:, :-1][scored]
        kd_weight = (1 - self._ce_weight) * self._temperature**2
        found = head_losses(
            last, head_of(self.student), successors=successors, ce_weight=self._ce_weight, target=target,
            logit_loss=logit_losses["kld"], kd_weight=kd_weight, temperature=self._temperature,
        )  # fmt: skip
        states = torch.stack([(x - y).float().square().mean() for x, y in zip(ours, theirs, strict=True)]).sum()
        excess = self._excess()
        penalty = self._strength(excess) * excess.square()
        loss = found.loss + (1 - self._ce_weight) * states + penalty
        self.terms = {"loss": loss.detach(), "ce_loss": found.ce_loss, "kd_loss": found.kd_loss}  # type: ignore[dict-item]
        self.terms |= {"state_loss": states.detach(), "excess": excess.detach()}
        return loss

    def _mask(self) -> Tensor:
        """Return the mask of all units, [units], with straight-through gradients."""
        parts = zip(self.space.split(self.scores), self.thresholds, strict=True)
        return torch.cat([_TopShare.apply(scores, thresholds).flatten() for scores, thresholds in parts])

    def _excess(self) -> Tensor:
        """Return by how much the expected share of prunable parameters exceeds the budget, at least 0."""
        prices = self.space.prices.to(self.thresholds.device).float()
        groups, neurons = (part.sum(1) for part in self.space.split(prices))
        kept = (torch.stack([groups, neurons]) * self.thresholds.sigmoid()).sum() / prices.sum()
        return (kept - (self.space.budget - self.space.fixed) / float(self.space.prices.sum())).clamp_min(0)

    def _strength(self, excess: Tensor) -> Tensor:
        """Return the weight of the penalty: that of the settings times its share of the largest one, at least 50; 10
        where little is left."""
        squared = excess.detach().square()
        pruned = 1 - (self.space.budget - self.space.fixed) / float(self.space.prices.sum())
        strength = (self._weight * squared / max(pruned, 1e-6) ** 2).clamp_min(50.0)
        return torch.where(squared < 0.0003, torch.full_like(strength, 10.0), strength)

    @torch.no_grad()
    def priorities(self) -> Tensor:
        """Return values [units] in whose order units are bought: the same shift of all thresholds keeps those above it.

        Of n units the one of 0-based rank r stays if r + 1/2 < sigmoid(t + v) n, that is if t - logit((r + 1/2) / n) >
        -v.
        """
        found = []
        for scores, thresholds in zip(self.space.split(self.scores), self.thresholds, strict=True):
            ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            found.append((thresholds[:, None] - ((ranks + 0.5) / max(1, scores.shape[1])).logit()).flatten())
        return torch.cat(found)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradients to the norm 1."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def configure_optimizers(self) -> Any:
        """Return Adam with rates for weights and for scores and thresholds, which fall linearly to 0."""
        return scheduled(torch.optim.AdamW([
            {"params": list(self.student.parameters()), "lr": self._lr},
            {"params": [self.scores, self.thresholds], "lr": self._score_lr},
        ], weight_decay=0.0), linear(self._max_steps))  # fmt: skip


_START = 5.0
"""First threshold: a share of 99 % stays."""


class _TopShare(torch.autograd.Function):
    """Masks [rows, units] of the highest scores of each row, ceil(sigmoid(t) n) of n."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, thresholds: Tensor) -> Tensor:
        counts = (thresholds.sigmoid() * scores.shape[1]).ceil()
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        mask = (ranks < counts[:, None]).to(scores.dtype)
        ctx.save_for_backward(mask)
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (mask,) = ctx.saved_tensors
        return gradient, (gradient * mask).sum(1)
