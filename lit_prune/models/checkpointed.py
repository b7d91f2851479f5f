"""Recompute activations in the backward pass, layer by layer, instead of keeping them (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lit_prune.models.model_family import layers_of


@contextmanager
def checkpointed_layers(*models: Any) -> Iterator[None]:
    """Keep only the inputs of each layer of the models for the backward pass, inside `with`.

    Dropout draws the same masks again, so gradients are the same bit for bit.
    """
    layers = [layer for model in models for layer in layers_of(model)]
    for layer in layers:
        layer.forward = _checkpointed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the instance: the class has its own


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return call
