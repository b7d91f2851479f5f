"""Train adapters and prune units by the sensitivity that the gradients of the adapters tell.

Source: LoRAPrune, arXiv 2305.18403.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.importance.unit_reduction import add_units
from lit_prune.models.description import Axes
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.gating import gated
from lit_prune.pruning.learned.mask_learner import MaskLearner, next_token_loss
from lit_prune.pruning.learned.schedules import linear, scheduled
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.units import UnitSpace


class Adapted(NamedTuple):
    """A linear module with an adapter."""

    layer: int
    module: Any
    axes: Axes
    """Axes of its weight."""
    transposed: bool
    """Whether its weight is stored as [in, out]."""


class LoraPruner(MaskLearner):
    """Train adapters B A of a model's linear modules and prune to the shape of `target`, step by step.

    The gradient of a frozen weight W is estimated as dB A + B dA - dB dA from the gradients dA, dB of its adapter.
    Times W + s B A, squared and summed over the weights of a unit, it is the unit's sensitivity, of which a moving
    average ranks the units of each layer. The variant "official" takes absolute values, and divides the sums of each
    matrix by their norm. The share of pruned units follows a cubic schedule, which begins after a tenth of the steps
    and ends a tenth before the last; units are masked every `prune_every` steps, and none returns.
    """

    sensitivity: Tensor
    mask: Tensor

    def __init__(
        self, model: Any, target: PrunePlan, *, rank: int, alpha: float, dropout: float, lr: float, decay: float,
        prune_every: int, variant: str, max_steps: int, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model.requires_grad_(False))
        self.space, self.target = UnitSpace.of(model.config, 1.0), target
        self._scale, self._dropout, self._lr, self._decay = alpha / rank, dropout, lr, decay
        self._prune_every, self._official, self._max_steps = prune_every, variant == "official", max_steps
        self._adapted = list(_linears(model))
        generator = torch.Generator().manual_seed(seed)
        sizes = [a.module.weight.shape[::-1] if a.transposed else a.module.weight.shape for a in self._adapted]
        bounds = [1 / math.sqrt(inputs) for _, inputs in sizes]
        self.down = nn.ParameterList([
            nn.Parameter(bound * (2 * torch.rand(rank, inputs, generator=generator) - 1))
            for bound, (_, inputs) in zip(bounds, sizes, strict=True)
        ])  # fmt: skip
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(outputs, rank)) for outputs, _ in sizes])
        self.register_buffer("sensitivity", torch.zeros(self.space.size))
        self.register_buffer("mask", torch.ones(self.space.size))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the language-model loss of the model with adapters, without the units masked so far."""
        with self._adapters(), gated(self.model, self.space.gates(self.mask)):
            loss = next_token_loss(self.model, batch)
        self.terms = {"loss": loss.detach(), "kept": self.mask.mean()}
        return loss

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradients to the norm 1, update the sensitivities, and mask units when it is time."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        with torch.no_grad():
            newest = torch.zeros_like(self.sensitivity)
            for i, place in enumerate(self._adapted):
                self._add(newest, place, self._estimated(i))
            self.sensitivity.lerp_(newest, 1 - self._decay)
            if self.global_step % self._prune_every == 0:
                self.mask.copy_(self.kept(pruned_share(self.global_step, self._max_steps)))

    def _estimated(self, i: int) -> Tensor:
        """Return the estimated gradient of a weight times the weight with its adapter, [out, in]."""
        a, b, place = self.down[i], self.up[i], self._adapted[i]
        assert a.grad is not None
        assert b.grad is not None
        gradient = b.grad @ a + b @ a.grad - b.grad @ a.grad
        weight = place.module.weight.T if place.transposed else place.module.weight
        return gradient * (weight + self._scale * b @ a)

    def _add(self, sums: Tensor, place: Adapted, products: Tensor) -> None:
        """Add the sensitivities of a matrix [out, in] to those of its units."""
        whole = self.space.whole
        values = products.abs() if self._official else products.square()
        values = values.T if place.transposed else values
        units = {name: values.new_zeros(whole.units(name)) for name in ("neuron", "head", "kv_group")}
        for name, found in units.items():
            add_units(found, values, place.axes, {name}, whole)
        groups, neurons = (part[place.layer] for part in self.space.split(sums))
        of_groups = (units["head"].view(whole.num_key_value_heads, -1).sum(1) + units["kv_group"])[: self.space.groups]
        for row, found in ((groups, of_groups), (neurons, units["neuron"])):
            row += found / (found.norm() + 1e-8) if self._official else found

    def kept(self, share: float) -> Tensor:
        """Return the mask after `share` of the units to prune of each layer are pruned, the least sensitive first."""
        masks = self.mask.clone()
        ranks = torch.where(masks > 0, self.sensitivity, -1.0)
        for layer in self.target.layers:
            counts = len(self.target.groups_of(layer)), len(layer.neurons)
            for mask, rank, count in zip(self.space.split(masks), self.space.split(ranks), counts, strict=True):
                drop = int((len(mask[layer.index]) - count) * share)
                order = rank[layer.index].argsort(stable=True)
                mask[layer.index] = 1
                mask[layer.index, order[: max(0, drop)]] = 0
        return masks

    @torch.no_grad()
    def finish(self) -> tuple[PrunePlan, Any]:
        """Return the plan of the kept units, and the model after its adapters are merged into the weights."""
        for a, b, place in zip(self.down, self.up, self._adapted, strict=True):
            change = self._scale * b @ a
            place.module.weight.add_(change.T if place.transposed else change)
        return self.space.plan_of(self.kept(1.0) > 0), self.model

    @contextmanager
    def _adapters(self) -> Iterator[None]:
        with ExitStack() as stack:
            for a, b, place in zip(self.down, self.up, self._adapted, strict=True):

                def add(module: nn.Module, inputs: Any, output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                    x = F.dropout(inputs[0], self._dropout, training=self.training)
                    return output + self._scale * F.linear(F.linear(x, a), b)

                stack.enter_context(_removed(place.module.register_forward_hook(add)))
            yield

    def configure_optimizers(self) -> Any:
        """Return AdamW for the adapters with a linear schedule to 0 after a warm-up of a tenth of the steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self._lr, weight_decay=0.0)
        return scheduled(optimizer, linear(self._max_steps, warmup=max(1, self._max_steps // 10)))


def pruned_share(step: int, max_steps: int, warmup: float = 0.1, cooldown: float = 0.1) -> float:
    """Return the share of the units to prune that are pruned at a 0-based step: cubic between warm-up and cool-down."""
    done = (step - warmup * max_steps) / max(1e-9, (1 - warmup - cooldown) * max_steps)
    return 1 - (1 - min(1.0, max(0.0, done))) ** 3


def _linears(model: Any) -> Iterator[Adapted]:
    anatomy = anatomy_of(model.config)
    for i, layer in enumerate(layers_of(model)):
        for name, module in layer.named_modules():
            if hasattr(module, "weight") and anatomy.is_linear(f"{name}.weight"):
                axes = anatomy.axes_of(f"{name}.weight")
                yield Adapted(i, module, axes, type(module).__name__ == "Conv1D")


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
