"""Reduce a value per weight to a value per unit, by summing over the weights that belong to the unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_prune.importance.aggregate import double
from lit_prune.models.model_family import Axes, anatomy_of, parts_of
from lit_prune.models.shape import ModelShape, shape_of

Worth = Callable[[str, Tensor], Tensor]
"""(name of a parameter, its weights) -> a number for each of them, in the same shape."""


def unit_sums(model: Any, worth: Worth) -> dict[str, Tensor]:
    """Return float64 sums of `worth` over the weights of each unit.

    Shapes: "neuron" [layers, neurons], "head" [layers, heads], "hidden" [1, hidden] over the whole model, "layer"
    [1, layers]. Keys and values count for a head only if it does not share them with other heads; its queries and its
    part of the output projection always count.
    """
    shape, anatomy = shape_of(model.config), anatomy_of(model.config)
    head = {"head", "kv_group"} if shape.num_attention_heads == shape.num_key_value_heads else {"head"}
    sums = {
        "neuron": torch.zeros(shape.num_hidden_layers, shape.intermediate_size, dtype=torch.float64),
        "head": torch.zeros(shape.num_hidden_layers, shape.num_attention_heads, dtype=torch.float64),
        "hidden": torch.zeros(1, shape.hidden_size, dtype=torch.float64),
        "layer": torch.zeros(1, shape.num_hidden_layers, dtype=torch.float64),
    }
    for name, parameter in model.named_parameters():
        values, axes = double(worth(name, parameter.detach())).cpu(), anatomy.axes_of(name)
        add_units(sums["hidden"][0], values, axes, {"hidden"}, shape)
        layer, _ = anatomy.layer_of(name)
        if layer is not None:
            add_units(sums["neuron"][layer], values, axes, {"neuron"}, shape)
            add_units(sums["head"][layer], values, axes, head, shape)
            sums["layer"][0, layer] += values.sum()
    return sums


def add_units(sums: Tensor, values: Tensor, axes: Axes, wanted: set[str], shape: ModelShape) -> None:
    """Add a parameter's values to the sums of the units on the `wanted` axes, in place."""
    for dim, axis in enumerate(axes):
        parts = parts_of(axis)
        if not wanted.intersection(parts):
            continue
        units = [shape.units(part) for part in parts]
        entries = values.shape[dim] // sum(units)
        slices = values.movedim(dim, 0).flatten(1).sum(1) if values.dim() > 1 else values
        for part, piece in zip(parts, slices.split([entries * count for count in units]), strict=True):
            if part in wanted:
                sums += piece.unflatten(0, (-1, entries)).sum(1)
