"""Next-token loss of a batch, and the base of modules that train masks by it."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from lit_prune.data.tokens import IGNORED
from lit_prune.losses.chunked import head_losses
from lit_prune.models.lm_head import head_of, last_states


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
