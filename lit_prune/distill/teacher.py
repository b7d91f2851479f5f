"""What a teacher shows of each micro-batch: the states its head reads, and those before it that are asked for.

The newest are kept: runs in turns over the same data share one forward pass. `cache.py` keeps them all, on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_prune.distill.hidden_states import HiddenStateReader, State, States
from lit_prune.losses.chunked import HeadTarget, Target
from lit_prune.models.lm_head import LMHead, head_of, last_states


@dataclass(frozen=True)
class ObservedOutput:
    """A forward pass of the teacher over one micro-batch."""

    last: Tensor
    """What the head reads, [batch, seq, width]."""
    states: States
    """States before it, each [batch, seq, width]."""
    head: LMHead

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """What the student's logits are compared with, at the positions `scored`, bool [batch, seq - 1]."""
        return HeadTarget(self.last[:, :-1][scored], self.head, top_k)


class TeacherOutput(Protocol):
    """A micro-batch as a teacher shows it."""

    @property
    def states(self) -> States:
        """States on the way, each [batch, seq, width]."""

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """What the student's logits are compared with, at the positions `scored`, bool [batch, seq - 1]."""


class Teacher(Protocol):
    """Who shows micro-batches: a model, or what is left of one on disk."""

    model: nn.Module
    """Whose config tells the shape."""

    def want(self, states: Iterable[State]) -> None:
        """Ask for states on the way to be shown from now on."""

    def observe(self, input_ids: Tensor, position: int | None = None) -> TeacherOutput:
        """What is shown of ids, int64 [batch, seq], which stand at `position` in the data."""


class FrozenTeacher:
    """A frozen teacher and the last thing it showed."""

    def __init__(self, teacher: nn.Module) -> None:
        self.model, self.head = teacher.eval().requires_grad_(False), head_of(teacher)
        self.passes = 0
        """Forward passes so far."""
        self._wanted: set[State] = set()
        self._newest: tuple[int, ObservedOutput] | None = None

    def want(self, states: Iterable[State]) -> None:
        """Ask for states on the way to be shown from now on."""
        if more := set(states) - self._wanted:
            self._wanted |= more
            self._newest = None

    @torch.no_grad()
    def observe(self, input_ids: Tensor, position: int | None = None) -> TeacherOutput:
        """What the teacher shows of ids, int64 [batch, seq]; at the same `position` in the data the same again."""
        if self._newest is not None and position is not None and self._newest[0] == position:
            return self._newest[1]
        with HiddenStateReader(self.model, list(self._wanted)) as states:
            last = last_states(self.model, input_ids)
        self.passes += 1
        shown = ObservedOutput(last, states, self.head)
        self._newest = None if position is None else (position, shown)
        return shown
