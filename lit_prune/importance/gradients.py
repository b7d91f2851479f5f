"""Taylor statistics of every weight: first order, and with the diagonal of the Fisher information.

Source: LLM-Pruner, arXiv 2305.11627, section 3.2. No other importance code runs a backward pass.
"""

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
    """Accumulate g and g^2 over sequences, where g is the gradient of a sequence's mean loss.

    Sequences are processed one by one, since the square of a batch's gradient is not the sum of the squares.
    Memory: two float64 numbers per weight.
    """

    takes_gradients = True

    def __init__(self, model: Any, on_progress: Callable[[int], None]) -> None:
        super().__init__(model, on_progress)
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
        """Replace each running sum by its `total`, the sum over all ranks."""
        for sums in (self.first, self.second):
            for name in sums:
                sums[name] = total(sums[name])

    def found(self) -> dict[str, dict[str, Tensor]]:
        """Return three sums over the weights w of each unit, per axis, shaped as in `unit_sums`.

        `vector.<axis>` is |sum w g|, `element1.<axis>` is sum |w g|, `element2.<axis>` is sum |w g - w^2 F / 2|, with
        g = d loss / d w and F the mean of g^2 over sequences.

        Raises:
            ConfigError: if a gradient was not finite.
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
        """Return the float64 gradient of one sequence's mean loss with respect to each parameter."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        with _trainable(parameters):
            losses = next_token_losses(self.model(input_ids=ids, use_cache=False).logits, labels)
            mean = losses.sum() / (labels[:, 1:] != IGNORED).sum()
            gradients = torch.autograd.grad(mean, parameters, materialize_grads=True)
        return {name: double(gradient) for name, gradient in zip(names, gradients, strict=True)}


@contextmanager
def _trainable(parameters: tuple[torch.nn.Parameter, ...]) -> Iterator[None]:
    """Make parameters require gradients inside `with`; those of a teacher frozen by an earlier distillation do not."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
