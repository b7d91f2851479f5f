"""The residual stream between the blocks of a decoder: read on the way, or put in place of the first blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_prune.models.model_family import blocks_of


class ResidualStream:
    """The states before, between and after the blocks of a model, each [batch, seq, hidden]."""

    def __init__(self, model: Any) -> None:
        self.blocks = blocks_of(model)
        self._in_tuples = False

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Fill a list in the forward pass inside `with`: what enters each block, and what leaves the last one.

        Hugging Face's `hidden_states[-1]` is read after the final norm, and would make the last block look as if it
        did the norm's work too.
        """
        states: list[Tensor] = []

        def leaving(module: nn.Module, inputs: object, output: Any) -> None:
            self._in_tuples = isinstance(output, tuple)
            states.append(output[0] if self._in_tuples else output)

        handles = [b.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for b in self.blocks]
        handles.append(self.blocks[-1].register_forward_hook(leaving))
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def resuming(self, state: Tensor, start: int) -> Iterator[None]:
        """Let `state` enter block `start` in the forward pass inside `with`; the blocks before it are not computed.

        Everything else, from masks and positions to the head, is left to the model, whatever its family does there.
        Needs one pass of `reading` before, to know the form of a block's output.
        """
        output = (state,) if self._in_tuples else state
        for block in self.blocks[:start]:
            block.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            for block in self.blocks[:start]:
                del block.forward
