"""What the loss says about every weight, to first order and with the diagonal of the Fisher information (LLM-Pruner,
arXiv 2305.11627, section 3.2). The only code of importance estimation that runs backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.calibration_pass import Pass, check_finite
from lit_prune.importance.layer_ablation import next_token_losses
from lit_prune.importance.unit_reduction import unit_sums


class Gradients(Pass):
    """Sums g and g^2 over sequences, where g is the gradient of the mean loss of one; sequences go one by one, since
    the square of a batch's gradient is not the sum of squares.

    Holds two float64 numbers a weight.
    """

    takes_gradients = True

    def __init__(self, model: Any, tell: Callable[[int], None]) -> None:
        super().__init__(model, tell)
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def read(self, batch: dict[str, Tensor]) -> None:
        """Read one batch {`input_ids`, `labels`: int64 [batch, seq]}."""
        for ids, labels in zip(batch["input_ids"].split(1), batch["labels"].split(1), strict=True):
            for name, gradient in self._gradients(ids, labels).items():
                if name not in self.first:
                    self.first[name], self.second[name] = torch.zeros_like(gradient), torch.zeros_like(gradient)
                self.first[name] += gradient
                self.second[name].addcmul_(gradient, gradient)

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total` over the ranks."""
        for sums in (self.first, self.second):
            for name in sums:
                sums[name] = total(sums[name])

    def found(self) -> dict[str, dict[str, Tensor]]:
        """For each axis the sums over the weights w of a unit, of g = d loss / d w and F = mean over sequences of g^2:
        `vector.<axis>` |sum w g|, `element1.<axis>` sum |w g| and `element2.<axis>` sum |w g - w^2 F / 2|, shaped as
        `unit_sums`.

        Raises:
            ConfigError: a gradient was not finite.
        """

        def linear(name: str, weights: Tensor) -> Tensor:
            return double(weights).cpu() * self.first[name].cpu() / self.seen

        def quadratic(name: str, weights: Tensor) -> Tensor:
            return linear(name, weights) - double(weights).cpu().square() * self.second[name].cpu() / self.seen / 2

        for name, sums in self.second.items():
            check_finite(f"the gradient of {name}", sums)
        kinds = {
            "vector": {axis: sums.abs() for axis, sums in unit_sums(self.model, linear).items()},
            "element1": unit_sums(self.model, lambda name, weights: linear(name, weights).abs()),
            "element2": unit_sums(self.model, lambda name, weights: quadratic(name, weights).abs()),
        }
        return {"gradients": {f"{kind}.{axis}": s for kind, axes in kinds.items() for axis, s in axes.items()}}

    @torch.enable_grad()
    def _gradients(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Float64 gradient of one sequence's mean loss by each parameter."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        with _trainable(parameters):
            losses = next_token_losses(self.model(input_ids=ids, use_cache=False).logits, labels)
            mean = losses.sum() / (labels[:, 1:] != IGNORED).sum()
            gradients = torch.autograd.grad(mean, parameters, materialize_grads=True)
        return {name: double(gradient) for name, gradient in zip(names, gradients, strict=True)}


@contextmanager
def _trainable(parameters: tuple[torch.nn.Parameter, ...]) -> Iterator[None]:
    """Parameters that require gradients inside `with`; those of a teacher that has distilled before do not."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
