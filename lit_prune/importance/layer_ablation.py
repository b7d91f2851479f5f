"""The language-model loss of a model without each span of layers.

A batch takes one full forward pass; for each span only the layers after it run again, from the state before the span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.config import Execution, Precision
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.calibration_pass import Pass, check_finite, stream
from lit_prune.losses.probabilities import negative_log_likelihood
from lit_prune.models.residual_stream import ResidualStream

_LOGITS_AT_ONCE = 2**22
"""Largest number of logits in CPU memory, small enough for the allocator to reuse the buffer. Larger buffers return to
Linux at once, and allocating them again took a fifth of the CPU time."""

_LOGITS_AT_ONCE_ON_GPU = 2**27
"""Largest number of logits in GPU memory."""

_LOGITS_IN_CACHE = 2**18
"""Logits per softmax on a CPU, few enough to stay in its cache between the steps."""


def removal_losses(
    model: Any, data: CalibrationData, length: int, execution: Execution, on_progress: Callable[[int], None],
    precision: Precision = "32-true",
) -> Tensor:  # fmt: skip
    """Return the loss in nats per token without layers l to l + length - 1, for each l: float64 [L - length + 1].

    Raises:
        ConfigError: if a loss is not finite.
    """
    removals = Removals(model, length, on_progress)
    stream(removals, data, execution, precision)
    return removals.found()["removals"]["loss"]


def sequences_at_once(ids: Tensor, vocab_size: int) -> int:
    """Return the number of sequences of a batch [batch, seq] whose logits fit the memory limit."""
    room = _LOGITS_AT_ONCE_ON_GPU if ids.is_cuda else _LOGITS_AT_ONCE
    return max(1, room // (ids.shape[1] * vocab_size))


def next_token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the nats of every next token, 0 at ignored labels: [batch, seq, vocab] -> float32 [batch * seq]."""
    successors = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    size = len(successors) if logits.is_cuda else max(1, _LOGITS_IN_CACHE // logits.shape[-1])
    parts = zip(logits.flatten(0, 1).split(size), successors.split(size), strict=True)
    return torch.cat([negative_log_likelihood(ours.float(), ids) for ours, ids in parts])


class Removals(Pass):
    """Accumulate the losses of the whole model and of the model without each span of `length` layers.

    The results equal those of a model with the layers removed, bit for bit. For single layers this takes
    L + L (L - 1) / 2 layer evaluations instead of L (L - 1). Memory: the L + 1 states of one batch.
    """

    def __init__(self, model: Any, length: int, on_progress: Callable[[int], None]) -> None:
        super().__init__(model, on_progress)
        self.residual, self.length = ResidualStream(model), length
        self.sums: Tensor | None = None
        """Float64: the loss of the whole model, the loss without each span, and the number of tokens."""

    def read(self, batch: dict[str, Tensor]) -> None:
        """Read one batch {`input_ids`, `labels`: int64 [batch, seq]} in parts whose logits fit the memory limit."""
        size = sequences_at_once(batch["input_ids"], self.model.config.vocab_size)
        for ids, labels in zip(batch["input_ids"].split(size), batch["labels"].split(size), strict=True):
            with self.residual.reading() as states:
                found = [self._loss(ids, labels)]
            for start in range(len(states) - self.length):
                with self.residual.resuming(states[start], start + self.length):
                    found.append(self._loss(ids, labels))
            found.append(double((labels[:, 1:] != IGNORED).sum()))
            self.sums = torch.stack(found) if self.sums is None else self.sums + torch.stack(found)

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace the running sums by their `total`, the sum over all ranks."""
        assert self.sums is not None
        self.sums = total(self.sums)

    def found(self) -> dict[str, dict[str, Tensor]]:
        """Return losses in nats per token, float64: `loss` [L - length + 1] by first removed layer, and `whole` [].

        Raises:
            ConfigError: if a loss is not finite.
        """
        assert self.sums is not None
        losses = self.sums[:-1].cpu() / self.sums[-1].cpu()
        check_finite("the loss of the whole model", losses[0])
        for start, loss in enumerate(losses[1:]):
            check_finite(f"the loss without the {self.length} layers from layer {start} on", loss)
        return {"removals": {"loss": losses[1:].clone(), "whole": losses[0].clone()}}

    def _loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        return double(next_token_losses(self.model(input_ids=ids, use_cache=False).logits, labels)).sum()
