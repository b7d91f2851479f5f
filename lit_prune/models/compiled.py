"""Compile a model layer by layer, which takes seconds instead of minutes for the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_prune.models.model_family import layers_of


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Compile every layer of a model inside `with`; layers of the same shape share their code.

    Hooks that are registered later on submodules of a compiled layer do not run.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # set by `compile`, which cannot be undone by public API
