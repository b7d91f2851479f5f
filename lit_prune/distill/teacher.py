"""Outputs of a frozen teacher for each micro-batch, computed here or read from disk by `cache.py`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_prune.distill.hidden_states import HiddenStateReader, State, States
from lit_prune.losses.targets import HeadTarget, Target
from lit_prune.models.lm_head import LMHead, head_of, last_states


class TeacherOutput(Protocol):
    """A teacher's output for one micro-batch."""

    @property
    def states(self) -> States:
        """The requested hidden states, each [batch, seq, width]."""

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """Return the target of the student's logits at the positions `scored`, bool [batch, seq - 1]."""


class Teacher(Protocol):
    """A teacher whose outputs are computed or read from a cache."""

    model: nn.Module
    """The model; its config gives the shape."""
    origin: str
    """Where the outputs come from, for env.json: "model", or the folder of the cache in the store."""

    def observe(self, input_ids: Tensor, position: int | None, states: Collection[State]) -> TeacherOutput:
        """Return the output for ids int64 [batch, seq], with the requested hidden states.

        `position` is the index of the micro-batch in the data of the run.
        """


@dataclass(frozen=True)
class HeadOutput:
    """The output of a forward pass up to the head, which the target applies to a few tokens at a time."""

    last: Tensor
    """The states that the head reads, [batch, seq, width]."""
    states: States
    head: LMHead

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """Return the target of the student's logits at the positions `scored`, bool [batch, seq - 1]."""
        return HeadTarget(self.last[:, :-1][scored], self.head, top_k)


class FrozenTeacher:
    """A frozen model that runs one forward pass per micro-batch."""

    origin = "model"

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def observe(self, input_ids: Tensor, position: int | None, states: Collection[State]) -> HeadOutput:
        """Run the model on ids int64 [batch, seq]; `position` is not used."""
        with HiddenStateReader(self.model, list(states)) as found:
            last = last_states(self.model, input_ids)
        return HeadOutput(last, found, head_of(self.model))
