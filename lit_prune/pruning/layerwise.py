"""Run a model layer by layer over calibration sequences, each layer fed by its already changed predecessors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.models.residual_stream import ResidualStream


@dataclass(frozen=True)
class LayerStep:
    """A layer with its inputs, which are the outputs of its predecessors as they are now."""

    index: int
    layer: nn.Module
    states: list[Tensor]
    """Input of the layer for each batch, [batch, seq, hidden]. If the caller replaces items of this list, the layer
    runs on the new ones."""
    run: Callable[[], None]
    """Run the layer over all its inputs without gradients, for the hooks of the caller; discard the outputs."""


def layerwise(
    model: Any, batches: Iterable[dict[str, Tensor]], on_progress: Callable[[int], None] = lambda done: None
) -> Iterator[LayerStep]:
    """Yield each layer with its inputs; before the next one, run the layer, changed or not, to get that one's inputs.

    The caller changes `layer` in place or replaces it in the model. The model itself computes masks, positions and all
    other arguments of a layer, so this works for every family. Memory: one state of each sequence, and one batch.

    Args:
        model: the model to change, in evaluation mode, on the device of the batches.
        batches: the calibration sequences, {`input_ids`: int64 [batch, seq]}.
        on_progress: called with the number of layers done.

    Raises:
        ValueError: if there are no batches.
    """
    ids = [batch["input_ids"] for batch in batches]
    if not ids:
        raise ValueError("batches: must hold at least one batch, got none")
    stream, states = ResidualStream(model), list[Tensor]()
    with stream.reading():
        _forward(model, ids[0][:1])
    for batch in ids:
        with stream.reading() as found, stream.skipping():
            _forward(model, batch)
        states.append(found[0])
    for index in range(len(stream.layers)):

        def run(index: int = index) -> None:
            for batch, state in zip(ids, states, strict=True):
                _run(stream, model, batch, index, state)

        yield LayerStep(index, stream.layers[index], states, run)
        for i, batch in enumerate(ids):
            states[i] = _run(stream, model, batch, index, states[i])
        on_progress(index + 1)


@torch.no_grad()
def _run(stream: ResidualStream, model: Any, ids: Tensor, index: int, state: Tensor) -> Tensor:
    with stream.only(index, state) as outputs:
        _forward(model, ids)
    return outputs[0]


@torch.no_grad()
def _forward(model: Any, ids: Tensor) -> None:
    model.base_model(input_ids=ids, use_cache=False)
