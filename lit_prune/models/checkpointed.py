"""Recompute activations in the backward pass, layer by layer, instead of keeping them (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def checkpointed_layers(*models: Any) -> Iterator[None]:
    """Keep only the inputs of each layer of Hugging Face models in training mode for the backward pass, inside `with`.

    Dropout draws the same masks again, so gradients are the same bit for bit.
    """
    for model in models:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        for model in models:
            model.activation_checkpointing_disable()
