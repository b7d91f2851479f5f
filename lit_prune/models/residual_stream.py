"""The residual stream between the layers of a decoder: read on the way, or put in place of the first layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_prune.models.model_family import layers_of


class ResidualStream:
    """The states before, between and after the layers of a model, each [batch, seq, hidden]."""

    def __init__(self, model: Any) -> None:
        self.layers = layers_of(model)
        self._in_tuples = False

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Fill a list in the forward pass inside `with`: what enters each layer, and what leaves the last one.

        Hugging Face's `hidden_states[-1]` is read after the final norm, and would make the last layer look as if it
        did the norm's work too.
        """
        states: list[Tensor] = []

        def leaving(module: nn.Module, inputs: object, output: Any) -> None:
            self._in_tuples = isinstance(output, tuple)
            states.append(output[0] if self._in_tuples else output)

        handles = [b.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for b in self.layers]
        handles.append(self.layers[-1].register_forward_hook(leaving))
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def resuming(self, state: Tensor, start: int) -> Iterator[None]:
        """Let `state` enter layer `start` in the forward pass inside `with`; the layers before it are not computed.

        Everything else, from masks and positions to the head, is left to the model, whatever its family does there.
        Needs one pass of `reading` before, to know the form of a layer's output.
        """
        output = (state,) if self._in_tuples else state
        for layer in self.layers[:start]:
            layer.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            for layer in self.layers[:start]:
                del layer.forward
