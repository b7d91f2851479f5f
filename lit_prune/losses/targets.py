"""The logits that a student imitates, of a few tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lit_prune.models.lm_head import LMHead


class Target(Protocol):
    """The logits that a student imitates, read a few tokens at a time."""

    def logits(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Return (logits float32 [n, vocab], None), or (the k largest logits [n, k], their ids int64 [n, k])."""


@dataclass(frozen=True)
class HeadTarget:
    """A target computed from the teacher's last states; with `top_k`, only the k largest logits are compared."""

    states: Tensor
    """[tokens, width]."""
    head: LMHead
    top_k: int | None = None

    @cached_property
    def _cast(self) -> LMHead:
        return self.head.cast()

    def logits(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            logits = self._cast.logits(self.states[rows])
            if self.top_k is None:
                return logits, None
            values, ids = logits.topk(self.top_k)
            return values, ids


@dataclass(frozen=True)
class TopKTarget:
    """A target of which only the k largest logits are stored; equal to a `HeadTarget` with `top_k=k`."""

    largest: Tensor
    """[tokens, k]."""
    ids: Tensor
    """int64 [tokens, k]."""

    def logits(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        return self.largest[rows].float(), self.ids[rows]
