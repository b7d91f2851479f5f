"""The linear modules in the layers of a model, and their weights with one row per output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.models.model_family import anatomy_of, layers_of


def linears_of(model: Any, layer: int | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear modules of all layers, or of one layer by its index, each with the full name of its weight."""
    anatomy = anatomy_of(model.config)
    for index, block in enumerate(layers_of(model)):
        if layer in (None, index):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear | Conv1D):
                    yield f"{anatomy.layers}.{index}.{name}.weight", module


def rows_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear module as [out, in], without gradient; GPT-2 stores the transpose."""
    return oriented(module, module.weight.detach())  # type: ignore[operator]


def oriented(module: nn.Module | None, weight: Tensor) -> Tensor:
    """Return a tensor in the shape of the weight of a module as [out, in], or the other way round."""
    return weight.T if isinstance(module, Conv1D) else weight
