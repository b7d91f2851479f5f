"""Learn which single weights to keep: a score for each, and frozen weights.

Sources: Static Model Pruning, arXiv 2210.06210; edge-popup, arXiv 1911.13299.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.models.linears import linears_of, rows_of
from lit_prune.pruning.learned.mask_learner import MaskLearner, next_token_loss
from lit_prune.pruning.learned.schedules import linear, scheduled
from lit_prune.pruning.masks import Masks, masked_weights
from lit_prune.pruning.sparsity import chooser


class WeightScores(MaskLearner):
    """Minimise the language-model loss of W' = M * W over scores S, one for each weight of the linears in the layers.

    The mask M keeps the same share of every matrix, those with the highest `rank(S)`. Its gradient passes straight
    to that value: dL/dS = dL/dW' * W * d rank(S)/dS. The sparsity rises from 0 to `sparsity` in the share `ramp` of the
    steps, as r = 1 - (1 - progress)^3; with a ramp of 0 it is `sparsity` from the start. `penalty` times r times the
    mean over matrices of the mean of sigmoid(S) is added to the loss.
    """

    def __init__(
        self, model: Any, start: Callable[[Tensor], Tensor], *, sparsity: float, ramp: float, penalty: float, lr: float,
        max_steps: int, rank: Callable[[Tensor], Tensor] = lambda scores: scores,
    ) -> None:  # fmt: skip
        super().__init__(model)
        found: dict[str, Any] = {name: module.weight for name, module in linears_of(model)}
        self._names = list(found)
        self._weights: list[nn.Parameter] = list(found.values())
        self.scores = nn.ParameterList(start(weight.detach()).float() for weight in self._weights)
        self._sparsity, self._ramp_steps, self._penalty = sparsity, ramp * max_steps, penalty
        self._lr, self._max_steps, self._rank = lr, max_steps, rank

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return a scalar whose gradient with respect to the scores is that of the loss."""
        risen = self.risen(self.global_step)
        kept = list(self.masks(risen * self._sparsity).values())
        with masked_weights(self._weights, kept):
            loss = next_token_loss(self.model, batch)
            gradients = torch.autograd.grad(loss, self._weights)
        shares = torch.stack([scores.sigmoid().mean() for scores in self.scores])
        passed = [
            ((gradient * weight.detach()).float() * self._rank(scores)).sum()
            for gradient, weight, scores in zip(gradients, self._weights, self.scores, strict=True)
        ]
        penalty = self._penalty * risen * shares.mean()
        self.terms = {"loss": loss.detach(), "penalty": penalty.detach()}
        self.terms["kept"] = loss.new_tensor(1 - risen * self._sparsity)
        return torch.stack(passed).sum() + penalty

    def risen(self, step: int) -> float:
        """Return the share of the final sparsity at a step, which counts from 0."""
        return 1 - (1 - step / self._ramp_steps) ** 3 if step < self._ramp_steps else 1.0

    @torch.no_grad()
    def masks(self, sparsity: float) -> Masks:
        """Return a mask in the shape of each weight; weights that are already zero are pruned first."""
        choose = chooser(sparsity, None, "matrix")
        return {
            name: choose(name, self._rank(scores).masked_fill(weight.to(scores.device) == 0, -torch.inf))
            for name, weight, scores in zip(self._names, self._weights, self.scores, strict=True)
        }

    def configure_optimizers(self) -> Any:
        """Return Adam with a rate that falls linearly to 0."""
        optimizer = torch.optim.AdamW(self.scores.parameters(), lr=self._lr, weight_decay=0.0)
        return scheduled(optimizer, linear(self._max_steps))


@torch.no_grad()
def draw_signed_constants(model: Any, generator: torch.Generator) -> None:
    """Set the weights of the linears in the layers to +-sqrt(2 / fan_in), signs drawn on the CPU, and biases to 0."""
    for _, module in linears_of(model):
        weight = rows_of(module)
        signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
        weight.copy_(signs * (2 / weight.shape[1]) ** 0.5)
        if isinstance(module.bias, Tensor):
            module.bias.zero_()


def uniform_scores(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function that draws scores in +-1 / sqrt(fan_in) for weights of `draw_signed_constants`."""

    def draw(weight: Tensor) -> Tensor:
        drawn = torch.rand(weight.shape, generator=generator).to(weight) * 2 - 1
        return drawn * weight.abs() / 2**0.5

    return draw
