"""Gates in a forward pass: multiply the outputs of KV groups and neurons, without a change of the model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor, nn

from lit_prune.data.tokens import IGNORED
from lit_prune.losses.chunked import head_losses
from lit_prune.models.lm_head import head_of, last_states
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.learned.units import UnitSpace


@contextmanager
def gated(model: Any, space: UnitSpace, gates: Tensor) -> Iterator[None]:
    """Multiply the units of a model by `gates` [units] in forward passes inside `with`; a gate of 0 prunes its unit."""
    anatomy, (groups, neurons) = anatomy_of(model.config), space.split(gates)
    handles = []
    for i, layer in enumerate(layers_of(model)):
        handles.append(scale_input(layer.get_submodule(anatomy.mlp_output), neurons[i]))
        if space.groups:
            handles.append(scale_input(layer.get_submodule(anatomy.attention_output), groups[i]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def scale_input(module: nn.Module, gates: Tensor) -> Any:
    """Register a hook that multiplies equal parts of a module's input [..., width] by `gates` [parts]."""

    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        factors = gates.repeat_interleave(x.shape[-1] // len(gates)).to(x)
        return (x * factors, *others)

    return module.register_forward_pre_hook(scale)


def scored_tokens(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids of a batch {`input_ids`, `labels`: int64 [batch, seq]}, bool [batch, seq - 1] that says after
    which of them the next token is scored, and the scored tokens int64 [tokens]."""
    successors = batch["labels"][:, 1:]
    scored = successors != IGNORED
    return batch["input_ids"], scored, successors[scored]


def next_token_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Return the mean loss in nats of the scored tokens of a batch, as `scored_tokens` takes it."""
    ids, scored, successors = scored_tokens(batch)
    last = last_states(model, ids)[:, :-1][scored]
    return head_losses(last, head_of(model), successors=successors, ce_weight=1.0).loss


class MaskLearner(L.LightningModule):
    """Base of modules that learn the masks of a model with frozen weights, which no checkpoint contains.

    A subclass sets `terms` in `training_step`: the scalars of the newest step, `loss` among them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._frozen: list[Any] = [model]  # in a list, so that it is no submodule
        self.terms: dict[str, Tensor] = {}

    @property
    def model(self) -> Any:
        """The model whose units are masked."""
        return self._frozen[0]

    def on_fit_start(self) -> None:
        """Move the model to the device of the masks; Lightning does not, since it is no submodule."""
        self._home = self.model.device
        self.model.to(self.device)

    def on_fit_end(self) -> None:
        """Move the model back."""
        self.model.to(self._home)
