"""Learn masks and weights in turn: the weights adapt to the mask, and the mask to weights that would adapt to it.

Source: BiP, "Advancing Model Pruning via Bi-level Optimization", arXiv 2210.04092.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_prune.models.linears import oriented, rows_of
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.gating import open_heads_in_norms
from lit_prune.pruning.learned.mask_learner import next_token_loss
from lit_prune.pruning.learned.schedules import cosine, scheduled
from lit_prune.pruning.masks import masked_weights
from lit_prune.pruning.units import UnitSpace


class BilevelLearner(L.LightningModule):
    """Train a model in place, and the scores whose highest ones within the budget are its mask m.

    A unit is masked by the columns of the output projection that read it, z = m * theta. From one half of a batch the
    weights get the gradient of L(z) for a fixed mask; from the other the mask gets the implicit gradient
    (theta - dL/dz / gamma) * dL/dz, summed over the columns of a unit. Both steps start from the same weights.
    """

    def __init__(
        self, model: Any, start: Tensor, space: UnitSpace, *, lr: float, mask_lr: float, inverse_gamma: float,
        max_steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.space = model.train(), space
        self.scores = nn.Parameter(start.float())
        self.terms: dict[str, Tensor] = {}
        self._lr, self._mask_lr, self._inverse_gamma, self._max_steps = lr, mask_lr, inverse_gamma, max_steps
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of both halves; `backward` sets the gradients that are computed here."""
        half = len(batch["input_ids"]) // 2
        lower, upper = ({name: batch[name][part] for name in ("input_ids", "labels")} for part in (
            slice(half), slice(half, None)
        ))  # fmt: skip
        mask = self.space.chosen(self.scores).to(self.scores)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        with masked_columns(self.model, self.space, mask) as columns:
            loss = next_token_loss(self.model, lower)
            of_weights = dict(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
            loss_of_mask = next_token_loss(self.model, upper)
            of_z = torch.autograd.grad(loss_of_mask, [module.weight for module, _ in columns])
        implicit = []
        for (module, kept), gradient in zip(columns, of_z, strict=True):
            weight, found = module.weight.detach(), of_weights[module.weight]
            of_weights[module.weight] = None if found is None else found * kept
            implicit.append(oriented(module, (weight - self._inverse_gamma * gradient) * gradient).sum(0))
        self._gradients = [*of_weights.items(), (self.scores, self._by_unit(implicit))]
        self.terms = {"loss": ((loss + loss_of_mask) / 2).detach(), "kept": mask.mean()}
        return self.terms["loss"]

    def _by_unit(self, columns: list[Tensor]) -> Tensor:
        """Return sums over the columns of each unit, [units], from those of each matrix of `masked_columns`."""
        layers = self.space.whole.num_hidden_layers
        neurons, heads = torch.stack(columns[:layers]), columns[layers:]
        groups = [row.view(self.space.groups, -1).sum(1) for row in heads]
        return torch.cat([*groups, neurons.flatten()])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Set the gradients that `training_step` found."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._gradients = []

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient of the weights to the norm 1."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def configure_optimizers(self) -> Any:
        """Return AdamW for weights and scores, each with a cosine schedule to 0."""
        return scheduled(torch.optim.AdamW([
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": self._lr},
            {"params": [self.scores], "lr": self._mask_lr},
        ], weight_decay=0.0), cosine(self._max_steps))  # fmt: skip


@contextmanager
def masked_columns(model: Any, space: UnitSpace, mask: Tensor) -> Iterator[list[tuple[Any, Tensor]]]:
    """Replace the output projections of a model by masked ones inside `with`: a gradient of them is that of z.

    Yield each projection with the mask of the columns of its weight, in a shape that multiplies the weight: those of
    the MLPs, then those of the attention if KV groups are units.
    """
    anatomy, (groups, neurons) = anatomy_of(model.config), space.split(mask)
    rows = [(anatomy.mlp_output, neurons)] + ([(anatomy.attention_output, groups)] if space.groups else [])
    found: list[tuple[Any, Tensor]] = []
    for path, masks in rows:
        for layer, row in zip(layers_of(model), masks, strict=True):
            module = layer.get_submodule(path)
            width = rows_of(module).shape[1]
            found.append((module, oriented(module, row.repeat_interleave(width // len(row))[None])))
    weights, kept = [module.weight for module, _ in found], [kept for _, kept in found]
    with masked_weights(weights, kept), open_heads_in_norms(model, space.gates(mask)):
        yield found
