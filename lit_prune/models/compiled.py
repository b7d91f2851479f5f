"""The layers of a model compiled one by one, which takes seconds where the whole model would take minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_prune.models.model_family import layers_of


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Inside `with`, every layer of a model is compiled; those of one shape share their code.

    What is compiled does not see hooks that are set on a layer's parts later.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # what `compile` has set, and offers no way to take back
