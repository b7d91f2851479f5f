"""Read the residual stream between the layers of a decoder, or resume a forward pass from one of its states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_prune.models.model_family import layers_of


class ResidualStream:
    """The residual stream of a model: the states before, between and after its layers, each [batch, seq, hidden]."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._in_tuples = False

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, first to last."""
        return layers_of(self._model)

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

        layers = self.layers
        handles = [b.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0])) for b in layers]
        handles.append(layers[-1].register_forward_hook(leaving))
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
        with self._replaced(self.layers[:start], lambda hidden: state):
            yield

    @contextmanager
    def skipping(self, indices: Collection[int] | None = None) -> Iterator[None]:
        """Make the forward pass inside `with` skip some layers, or all. Requires an earlier pass, as `resuming`."""
        skipped = [layer for i, layer in enumerate(self.layers) if indices is None or i in indices]
        with self._replaced(skipped, lambda hidden: hidden):
            yield

    @contextmanager
    def only(self, index: int, state: Tensor) -> Iterator[list[Tensor]]:
        """Yield a list that gets the output of layer `index` for the input `state` from the pass inside `with`.

        The other layers are skipped. Masks, positions and other arguments of the layer are those that the model itself
        computes. Requires an earlier pass, as `resuming` does.
        """
        layers, outputs = self.layers, list[Tensor]()

        def leaving(module: nn.Module, inputs: object, output: Any) -> None:
            outputs.append(output[0] if self._in_tuples else output)

        others = [layer for i, layer in enumerate(layers) if i != index]
        with self._replaced(others, lambda hidden: hidden):
            handles = [
                # First of all hooks, so that those of the caller see the state too.
                layers[index].register_forward_pre_hook(lambda module, inputs: (state, *inputs[1:]), prepend=True),
                layers[index].register_forward_hook(leaving),
            ]
            try:
                yield outputs
            finally:
                for handle in handles:
                    handle.remove()

    @contextmanager
    def _replaced(self, layers: list[nn.Module], output: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Make layers return `output(hidden states)` inside `with`."""

        def forward(hidden: Tensor, *args: object, **kwargs: object) -> Any:
            return (output(hidden),) if self._in_tuples else output(hidden)

        for layer in layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward
