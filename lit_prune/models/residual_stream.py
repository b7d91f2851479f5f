"""Read the residual stream between the layers of a decoder, or resume a forward pass from one of its states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_prune.models.model_family import layers_of


class ResidualStream:
    """The residual stream of a model: the states before, between and after its layers, each [batch, seq, hidden]."""

    def __init__(self, model: Any) -> None:
        self.layers = layers_of(model)
        self._in_tuples = False

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Yield a list that the forward pass inside `with` fills with the input of each layer and the last output.

        Hugging Face's `hidden_states[-1]` is read after the final norm, which would attribute the norm's effect to the
        last layer.
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
        """Make the forward pass inside `with` skip the layers before `start`, with `state` as the input of `start`.

        The model itself computes everything else, such as masks, positions and the head, as its family does. Requires
        an earlier pass with `reading`, which detects whether layers return tuples.
        """
        output = (state,) if self._in_tuples else state
        for layer in self.layers[:start]:
            layer.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            for layer in self.layers[:start]:
                del layer.forward
