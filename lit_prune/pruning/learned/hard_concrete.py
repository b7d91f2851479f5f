"""Train hard-concrete gates together with the weights, under Lagrangian constraints, to an exact uniform shape.

Source: Sheared LLaMA, arXiv 2310.06694, section 2.1. Gates: arXiv 1712.01312.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning.gating import LayerGates, gated
from lit_prune.pruning.learned.mask_learner import next_token_loss
from lit_prune.pruning.learned.schedules import constant, cosine, scheduled
from lit_prune.pruning.masked import mean_loss
from lit_prune.pruning.plan import LayerPlan, PrunePlan

_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
"""Temperature and ends of the stretched interval."""
_BOUND = math.log(100)
"""Largest absolute value of log alpha."""


class Gates(nn.Module):
    """The gates of one axis, [..., units], of which `target` of `units` are to be open; one constraint for all rows."""

    def __init__(self, shape: tuple[int, ...], target: int, generator: torch.Generator) -> None:
        super().__init__()
        self.target = target
        self.log_alpha = nn.Parameter(torch.normal(5.0, 0.01, shape, generator=generator))
        self.linear, self.quadratic = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def sample(self) -> Tensor:
        """Return gates in [0, 1], of which many are exactly 0 or 1."""
        u = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        return self._at((u / (1 - u)).log())

    def median(self) -> Tensor:
        """Return the medians of the gates."""
        return self._at(torch.zeros_like(self.log_alpha))

    def _at(self, logits: Tensor) -> Tensor:
        s = (logits + self.log_alpha).div(_BETA).sigmoid()
        return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def expected(self) -> Tensor:
        """Return the expected share of open gates of each row, [...]: the mean of P(z > 0)."""
        return (self.log_alpha - _BETA * math.log(-_LOW / _HIGH)).sigmoid().mean(-1)

    def penalty(self, done: float) -> Tensor:
        """Return the mean over rows of lambda_1 (s - t) + lambda_2 (s - t)^2, for the expected sparsity s.

        The target t is the share `done` of the final sparsity.
        """
        gap = 1 - self.expected() - done * (1 - self.target / self.log_alpha.shape[-1])
        return (self.linear * gap + self.quadratic * gap.square()).mean()

    def chosen(self) -> Tensor:
        """Return the indices of the `target` gates with the highest alpha in each row, ascending: [..., target]."""
        return self.log_alpha.detach().topk(self.target, dim=-1).indices.sort(dim=-1).values.cpu()


class ShapeLearner(L.LightningModule):
    """Train a model and the gates of the axes that `target` cuts: min over weights and gates, max over multipliers.

    `model` is trained in place. The target sparsity rises linearly over the first `warmup_steps`. The weights have
    AdamW with linear warm-up over a tenth of the steps and cosine decay to a tenth; gates and multipliers have the
    constant rate `gate_lr`.
    """

    def __init__(
        self, model: Any, target: ModelShape, *, lr: float, gate_lr: float, warmup_steps: int, max_steps: int,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.target, self.whole = model.train(), target, shape_of(model.config)
        self.terms: dict[str, Tensor] = {}
        self._lr, self._gate_lr, self._warmup_steps, self._max_steps = lr, gate_lr, warmup_steps, max_steps
        self.gates = nn.ModuleDict(_gates(self.whole, target, torch.Generator().manual_seed(seed)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the language-model loss of the gated model plus the penalties."""
        with torch.no_grad():
            for _, gates in self._each():
                gates.log_alpha.clamp_(-_BOUND, _BOUND)
        with self._gated({axis: gates.sample() for axis, gates in self._each()}):
            loss = next_token_loss(self.model, batch)
        done = min(1.0, self.global_step / self._warmup_steps) if self._warmup_steps else 1.0
        penalty = torch.stack([gates.penalty(done) for _, gates in self._each()]).sum() if len(self.gates) else 0 * loss
        open_gates = {f"open_{axis}": gates.expected().mean().detach() for axis, gates in self._each()}
        self.terms = {"loss": loss.detach(), "penalty": penalty.detach(), **open_gates}
        return loss + penalty

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[dict[str, Tensor]]) -> float:
        """Return the loss in nats per scored token over batches, with every gate at its median."""
        with self._gated({axis: gates.median() for axis, gates in self._each()}):
            self.model.eval()
            try:
                return mean_loss(self.model, batches)
            finally:
                self.model.train()

    def _gated(self, gates: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return gated(self.model, layer_gates(gates, self.whole.num_hidden_layers), gates.get("hidden"))

    def plan(self) -> PrunePlan:
        """Return the plan that keeps the units with the highest gates, as many as the target has."""
        whole, rows = self.whole, self.whole.num_hidden_layers
        layers, hidden = self._chosen("layer", rows), self._chosen("hidden", whole.hidden_size)
        groups = self._chosen("group", whole.num_key_value_heads, rows)
        neurons = self._chosen("neuron", whole.intermediate_size, rows)
        size = whole.heads_per_group
        heads = (groups[..., None] * size + torch.arange(size)).flatten(1)
        kept = (LayerPlan(i, tuple(neurons[i].tolist()), tuple(heads[i].tolist())) for i in layers.tolist())
        return PrunePlan(whole, tuple(hidden.tolist()), tuple(kept))

    def _chosen(self, axis: str, whole: int, *rows: int) -> Tensor:
        """Return the indices of the chosen units of an axis, [*rows, units]; all of them if it has no gates."""
        if axis not in self.gates:
            return torch.arange(whole).expand(*rows, -1)
        gates = self.gates[axis]
        assert isinstance(gates, Gates)
        return gates.chosen()

    def configure_optimizers(self) -> Any:
        """Return one AdamW that descends along weights and gates and ascends along the multipliers."""
        multipliers = [p for _, gates in self._each() for p in (gates.linear, gates.quadratic)]
        still = {"lr": self._gate_lr, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([
            {"params": list(self.model.parameters()), "lr": self._lr, "weight_decay": 0.0},
            {"params": [gates.log_alpha for _, gates in self._each()], **still},
            {"params": multipliers, "maximize": True, **still},
        ], betas=(0.9, 0.95))  # fmt: skip
        weights = cosine(self._max_steps - 1, least=0.1, warmup=max(1, self._max_steps // 10))
        return scheduled(optimizer, weights, constant, constant)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient of the weights to the norm 1."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def _each(self) -> Iterator[tuple[str, Gates]]:
        for axis, gates in self.gates.items():
            assert isinstance(gates, Gates)
            yield axis, gates


def _gates(whole: ModelShape, target: ModelShape, generator: torch.Generator) -> dict[str, Gates]:
    """Return the gates of the axes that are cut; neurons and groups have a row for each layer."""
    layers = whole.num_hidden_layers
    sizes = {
        "layer": ((layers,), target.num_hidden_layers),
        "hidden": ((whole.hidden_size,), target.hidden_size),
        "group": ((layers, whole.num_key_value_heads), target.num_key_value_heads),
        "neuron": ((layers, whole.intermediate_size), target.intermediate_size),
    }
    return {axis: Gates(shape, kept, generator) for axis, (shape, kept) in sizes.items() if kept < shape[-1]}


def layer_gates(gates: Mapping[str, Tensor], layers: int) -> list[LayerGates]:
    """Return the gates of each layer, from "layer" [layers], "group" and "neuron" [layers, units] as far as given."""
    axes = ("neuron", "group", "layer")
    return [LayerGates(*(gates[axis][i] if axis in gates else None for axis in axes)) for i in range(layers)]
